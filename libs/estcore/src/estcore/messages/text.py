"""Text of a peer: printable and bounded before it is kept, and always encodable.

- A character that is not printable (a control character, a line separator, a lone surrogate, which
  is how aiohttp and the operating system decode an octet that is not UTF-8) becomes U+FFFD.
- A horizontal tab, which HTTP allows between the parts of a field value, becomes a space.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

_REPLACEMENT = "\ufffd"
_SURROGATE = re.compile("[\ud800-\udfff]")


def plain_text(value: str, limit: int) -> str:
    """Return at most ``limit`` characters of ``value``, every one of them printable."""
    value = value[:limit]
    if value.isprintable():
        return value
    return "".join(c if c.isprintable() else " " if c == "\t" else _REPLACEMENT for c in value)


def without_surrogates(value: Any) -> Any:
    """Return a JSON value without lone surrogates, for which UTF-8 has no form (RFC 3629)."""
    if isinstance(value, PurePath):
        # A file name that is not UTF-8: pydantic writes paths without asking its fallback.
        return without_surrogates(str(value))
    if isinstance(value, str):
        return _SURROGATE.sub(_REPLACEMENT, value)
    if isinstance(value, BaseModel):
        return without_surrogates(value.model_dump(mode="json", exclude_none=True))
    if isinstance(value, Mapping):
        return {without_surrogates(key): without_surrogates(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_surrogates(item) for item in value]
    return value
