"""PEM as RFC 7468 lets it be read: text around the blocks, any line length, any line ending.

Strict where a choice would be hidden: BEGIN and END name the same label, and the base64 has
nothing else in it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass

from estcore.errors import MalformedRequest

_BEGIN, _END, _DASHES = b"-----BEGIN ", b"-----END ", b"-----"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WIDTH = 64
_MARGIN = 80
"""White space before a boundary that is looked through."""
_SPACE = b" \t\r\n\x0b\x0c"


@dataclass(frozen=True)
class PEMBlock:
    """One block: its label (``CERTIFICATE REQUEST``) and its base64 text, not yet decoded."""

    label: str
    text: bytes

    @property
    def der(self) -> bytes:
        """The octets.

        Raises:
            MalformedRequest: ``pem.not_base64``.
        """
        try:
            return binascii.a2b_base64(self.text.translate(None, _SPACE), strict_mode=True)
        except binascii.Error as exc:
            raise MalformedRequest(
                f"the PEM block {self.label} is not base64", code="pem.not_base64"
            ) from exc


def pem_blocks(text: bytes) -> list[PEMBlock]:
    """Return the PEM blocks in a text, in its order; whatever else stands there is left out.

    Raises:
        MalformedRequest: ``pem.incomplete``, a block that does not end with the label it began
            with.
    """
    return list(_blocks(text.removeprefix(_BYTE_ORDER_MARK)))


def pem_text(label: str, der: bytes) -> str:
    """Return one PEM block in the strict form of RFC 7468 section 3."""
    text = base64.b64encode(der).decode()
    lines = [text[i : i + _WIDTH] for i in range(0, len(text), _WIDTH)]
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""))


def _blocks(text: bytes) -> Iterator[PEMBlock]:
    place = _boundary(text, _BEGIN, 0)
    while place >= 0:
        start = place + len(_BEGIN)
        stop = text.find(_DASHES, start)
        label = text[start:stop] if stop >= 0 else b""
        if not label or b"\n" in label or b"\r" in label:
            raise _incomplete()
        end = _boundary(text, _END, stop)
        closing = _END + label + _DASHES
        inner = text[stop + len(_DASHES) : end]
        if end < 0 or not text.startswith(closing, end) or _BEGIN in inner:
            raise _incomplete()
        yield PEMBlock(label.decode("ascii", "replace"), inner)
        place = _boundary(text, _BEGIN, end + len(closing))


def _boundary(text: bytes, mark: bytes, start: int) -> int:
    """Return where ``mark`` next begins a line, apart from white space before it; else -1."""
    place = text.find(mark, start)
    while place >= 0:
        margin = text[max(0, place - _MARGIN) : place].rstrip(b" \t")
        if place == 0 or margin[-1:] in (b"\n", b"\r") or (place <= _MARGIN and not margin):
            return place
        place = text.find(mark, place + 1)
    return -1


def _incomplete() -> MalformedRequest:
    return MalformedRequest(
        "a PEM block does not end with the label it began with", code="pem.incomplete"
    )
