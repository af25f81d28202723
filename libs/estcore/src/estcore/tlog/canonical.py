"""Canonical JSON (RFC 8785) of the data audit records are made of (pure).

Called by: estcore.tlog.export, estcore.tlog.verify, audit.intake, audit.log, audit.export
Strings, booleans, null, lists, objects with ASCII names, and integers within ±2**53: for these
the standard library's encoder gives the bytes RFC 8785 asks for. Floats are refused, since
their canonical form is where implementations differ.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from estcore.errors import MalformedRequest

MAX_INTEGER = 2**53
_DEPTH = 32
_INTEGER_DIGITS = 17
_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False
)


def encode(value: Any) -> bytes:
    """Return the canonical bytes of ``value``, after looking at every part of it.

    Raises:
        MalformedRequest: something in it has no canonical form here.
    """
    _check(value, _DEPTH)
    return to_octets(_ENCODER.encode(value))


def parse(data: bytes | str) -> Any:
    """Return the JSON in ``data`` if it can be rendered canonically.

    The text itself need not be canonical. Names are looked at by ``render``.

    Raises:
        MalformedRequest: not JSON, or holding a float or a large integer.
    """
    try:
        return json.loads(data, parse_float=_no_float, parse_constant=_no_float, parse_int=_integer)
    except (ValueError, RecursionError) as exc:
        raise MalformedRequest("not JSON in UTF-8", code="json.malformed") from exc


def render(value: Any) -> str:
    """Return the canonical text of what ``parse`` returned.

    Raises:
        MalformedRequest: a name is not ASCII, or text is not Unicode.
    """
    try:
        text = _ENCODER.encode(value)
    except RecursionError as exc:
        raise _refused("nested too deeply") from exc
    if not text.isascii():
        _check(value, _DEPTH)
        to_octets(text)
    return text


def to_octets(text: str) -> bytes:
    """Return ``text`` in UTF-8.

    Raises:
        MalformedRequest: half of a surrogate pair.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise _refused("half of a surrogate pair") from exc


def _check(value: Any, depth: int) -> None:
    if depth == 0:
        raise _refused("nested too deeply")
    if isinstance(value, dict):
        for name, member in value.items():
            if not isinstance(name, str) or not name.isascii():
                raise _refused("a name that is not ASCII")
            _check(member, depth - 1)
    elif isinstance(value, list):
        for member in value:
            _check(member, depth - 1)
    elif isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise _refused("an integer beyond 2**53")
    elif value is not None and not isinstance(value, str):
        raise _refused(f"a {type(value).__name__}")


def _refused(what: str) -> MalformedRequest:
    return MalformedRequest(f"no canonical form: {what}", code="json.not_canonical")


def _no_float(text: str) -> NoReturn:
    raise _refused("a float")


def _integer(text: str) -> int:
    if len(text) > _INTEGER_DIGITS or abs(number := int(text)) > MAX_INTEGER:
        raise _refused("an integer beyond 2**53")
    return number
