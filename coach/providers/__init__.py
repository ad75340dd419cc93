"""AI providers: prompts, the pool of HTTP/2 connections to them, and streamed answers.

A `Pool` has two faces over the same connections. As an `httpx.AsyncBaseTransport` it serves
everything that wants a whole response; `open_stream` serves a feedback turn: its receiver is called
synchronously, from the connection's reader task, with each piece as it arrives.
"""

from .exchange import ReceiverFailed
from .pool import Pool, PoolStatistics, open_pool
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

__all__ = [
    "Block",
    "Completion",
    "ErrorKind",
    "Message",
    "Pool",
    "PoolStatistics",
    "Prompt",
    "Provider",
    "ProviderError",
    "ReceiverFailed",
    "Sink",
    "Usage",
    "estimate_tokens",
    "feedback_prompt",
    "judge_prompt",
    "open_pool",
    "open_provider",
]
