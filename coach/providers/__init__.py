"""AI providers: prompts, the pool of HTTP/2 connections to them, and streamed answers.

A `Pool` has two faces over the same connections. As an `httpx.AsyncBaseTransport` it serves
everything that wants a whole response; `open_stream` serves a feedback turn: its receiver is called
synchronously, from the connection's reader task, with each piece as it arrives.
"""

from .circuit import Circuit, Leave, open_circuit
from .exchange import ReceiverFailed
from .failover import FirstTokens, closes_gate, hold_s, is_fault, is_final
from .pool import Pool, PoolStatistics, open_pool, origin_of
from .prompt import feedback_prompt, judge_prompt
from .provider import Provider, open_provider
from .records import (
    Block,
    Completion,
    ErrorKind,
    Message,
    Prompt,
    ProviderError,
    Sink,
    Usage,
    estimate_tokens,
)
from .unpooled import Unpooled

__all__ = [
    "Block",
    "Circuit",
    "Completion",
    "ErrorKind",
    "FirstTokens",
    "Leave",
    "Message",
    "Pool",
    "PoolStatistics",
    "Prompt",
    "Provider",
    "ProviderError",
    "ReceiverFailed",
    "Sink",
    "Unpooled",
    "Usage",
    "closes_gate",
    "estimate_tokens",
    "feedback_prompt",
    "hold_s",
    "is_fault",
    "is_final",
    "judge_prompt",
    "open_circuit",
    "open_pool",
    "open_provider",
    "origin_of",
]
