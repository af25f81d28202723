"""Text of strangers where people see it: terminals, pages, spreadsheets."""

from __future__ import annotations

import re

_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
"""Printable to Python and shown as nothing: fillers, variation selectors, the blank of Braille."""
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
_BMP_END = 0xFFFF
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def visible(text: str, *, keep: str = "") -> str:
    r"""Return ``text`` with an escape for every character that is not seen, as JSON writes it.

    Escaped are control, format, private, unassigned and surrogate characters, every separator
    but the space, and characters that are drawn as nothing. ``keep`` names exceptions.
    """
    if text.isprintable() and (text.isascii() or not _INVISIBLE.search(text)):
        return text
    return "".join(c if c in keep or _is_seen(c) else escaped(c) for c in text)


def spreadsheet_value(text: str) -> str:
    """Return ``text`` such that a spreadsheet takes it for text and never for a formula."""
    return "'" + text if text.startswith(_FORMULA) else text


def _is_seen(character: str) -> bool:
    return character.isprintable() and _INVISIBLE.match(character) is None


def escaped(character: str) -> str:
    """Return the escape of a character, as JSON writes it."""
    short = _SHORT.get(character)
    if short is not None:
        return short
    number = ord(character)
    if number <= _BMP_END:
        return f"\\u{number:04x}"
    high, low = divmod(number - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
