"""A student's text inside a prompt: between tags that no text can end; pure.

The tags bear a mark, `<essay-1f8a90c3>`, that the text does not hold, so no text can end the essay
or begin another, whatever it knows of this module (K. Hines et al., "Defending Against Indirect
Prompt Injection Attacks With Spotlighting", arXiv 2403.14720: of their three ways this one leaves
the text as it is, which quotes need).
"""

from __future__ import annotations

import re
import unicodedata
from hashlib import blake2b
from typing import Final

_TAG: Final = re.compile(r"<(?=\s*/?\s*(?:essay|was)\b)", re.IGNORECASE)
_NO_MARK: Final = re.compile(r"[^0-9a-f]+")
_MARK_BYTES: Final = 4


def tagged(**texts: str) -> str:
    """Texts between tags of these names, which bear one mark that none of the texts holds.

    The same for the same texts: prompts that share an endpoint share what it has cached.
    """
    mark = _mark("\n".join(texts.values()))
    return "\n".join(
        f"<{name}-{mark}>\n{harmless(text)}\n</{name}-{mark}>" for name, text in texts.items()
    )


def harmless(text: str) -> str:
    """The text without our tags, which nobody is to take for ours; as long as before."""
    return _TAG.sub("‹", text)


def _mark(text: str) -> str:
    """A mark that the text does not hold, nor would if its reader left out what is no hex digit."""
    held = _NO_MARK.sub("", unicodedata.normalize("NFKC", text).lower())
    data, number = text.encode("utf-8", "surrogatepass"), 0
    while True:
        key = number.to_bytes(4)
        mark = blake2b(data, key=key, digest_size=_MARK_BYTES).hexdigest()
        if mark not in held:
            return mark
        number += 1
