"""AI providers: prompts, the pool of HTTP/2 connections to them, and streamed answers.

A `Pool` has two faces over the same connections. As an `httpx.AsyncBaseTransport` it serves
everything that wants a whole response; `open_stream` serves a feedback turn: its receiver is called
synchronously, from the connection's reader task, with each piece as it arrives.
"""

from .batches import BatchApi, BatchRequest, BatchResult, Found, open_batch_api
from .cacheable import ANTHROPIC_PRICE, CachePrice, Terms, terms_of
from .circuit import Circuit, Leave, open_circuit
from .conversation import Conversation, Question
from .estimator import Estimator
from .exchange import ReceiverFailed
from .failover import FirstTokens, closes_gate, hold_s, is_fault, is_final
from .keepwarm import Ping, keep_warm
from .pool import Pool, PoolStatistics, open_pool, origin_of
from .prompt import Pseudonyms, feedback_prompt, judge_prompt
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
    size_of,
)
from .unpooled import Unpooled
from .warmth import Interest, Visit, Warmth, open_warmth

__all__ = [
    "ANTHROPIC_PRICE",
    "BatchApi",
    "BatchRequest",
    "BatchResult",
    "Block",
    "CachePrice",
    "Circuit",
    "Completion",
    "Conversation",
    "ErrorKind",
    "Estimator",
    "FirstTokens",
    "Found",
    "Interest",
    "Leave",
    "Message",
    "Ping",
    "Pool",
    "PoolStatistics",
    "Prompt",
    "Provider",
    "ProviderError",
    "Pseudonyms",
    "Question",
    "ReceiverFailed",
    "Sink",
    "Terms",
    "Unpooled",
    "Usage",
    "Visit",
    "Warmth",
    "closes_gate",
    "estimate_tokens",
    "feedback_prompt",
    "hold_s",
    "is_fault",
    "is_final",
    "judge_prompt",
    "keep_warm",
    "open_batch_api",
    "open_circuit",
    "open_pool",
    "open_provider",
    "open_warmth",
    "origin_of",
    "size_of",
    "terms_of",
]
