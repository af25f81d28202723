"""Canonical JSON (RFC 8785) of the data audit records are made of (pure).

Strings, booleans, null, lists, objects with ASCII names, and integers within ±2**53: for these
any compact JSON encoder gives the bytes RFC 8785 asks for, once the names are sorted. Floats
are refused, since their canonical form is where implementations differ. The encoder is that of
pydantic: the standard library's takes four times as long, and this is the audit writer's
biggest cost.
"""

from __future__ import annotations

from typing import Any

from pydantic_core import PydanticSerializationError, from_json, to_json

from estcore.errors import MalformedRequest

MAX_INTEGER = 2**53
MAX_DEPTH = 32
_PLAIN = {str, bool, type(None)}
"""What has one canonical form, whatever its value."""


def parse(data: bytes | str) -> Any:
    """Return the JSON in ``data``, which need not be canonical.

    Raises:
        MalformedRequest: not JSON in UTF-8. What has no canonical form is found by ``encode``.
    """
    try:
        return from_json(data, allow_inf_nan=False)
    except ValueError as exc:
        raise MalformedRequest("not JSON in UTF-8", code="json.malformed") from exc


def encode(value: Any) -> bytes:
    """Return the canonical bytes of ``value``.

    Raises:
        MalformedRequest: something in it has no canonical form here.
    """
    try:
        octets = to_json(_member(value, MAX_DEPTH))
    except (PydanticSerializationError, UnicodeEncodeError) as exc:
        raise _refused("text that is not Unicode") from exc
    if not octets.isascii():
        _check_names(value)
    return octets


def is_canonical(value: Any, octets: bytes) -> bool:
    """Return whether ``octets``, which ``parse`` read as ``value``, are its canonical bytes.

    The same answer as comparing with ``encode``, without putting names in order.

    Raises:
        MalformedRequest: something in it has no canonical form here.
    """
    try:
        encoded = to_json(value)
    except (PydanticSerializationError, UnicodeEncodeError) as exc:
        raise _refused("text that is not Unicode") from exc
    in_order = _in_order(value, MAX_DEPTH)
    if not encoded.isascii():
        _check_names(value)
    return encoded == octets and in_order


def _in_order(value: Any, depth: int) -> bool:
    """Return whether all names are in order, and raise for what has no canonical form."""
    kind = type(value)
    if kind is dict:
        if depth == 0:
            raise _refused("nested too deeply")
        before, ordered = "", True
        for name, member in value.items():
            if name < before:
                ordered = False
            before = name
            if type(member) in _PLAIN:
                continue
            if not _in_order(member, depth - 1):
                ordered = False
        return ordered
    if kind is list:
        if depth == 0:
            raise _refused("nested too deeply")
        found = [_in_order(member, depth - 1) for member in value]
        return all(found)
    _member(value, depth)
    return True


def render(value: Any) -> str:
    """Return the canonical text of ``value``.

    Raises:
        MalformedRequest: something in it has no canonical form here.
    """
    return encode(value).decode()


def _object(value: dict[Any, Any], depth: int) -> dict[str, Any]:
    """Return the object with its names in order. Most members are text: these cost no call."""
    if depth == 0:
        raise _refused("nested too deeply")
    try:
        names: list[str] = sorted(value)
    except TypeError as exc:
        raise _refused("a name that is not text") from exc
    if names and type(names[0]) is not str:
        raise _refused("a name that is not text")
    ordered: dict[str, Any] = {}
    for name in names:
        member = value[name]
        ordered[name] = member if type(member) is str else _member(member, depth - 1)
    return ordered


def _member(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, dict):
        return _object(value, depth)
    if isinstance(value, list):
        if depth == 0:
            raise _refused("nested too deeply")
        return [_member(member, depth - 1) for member in value]
    if not isinstance(value, int):
        raise _refused(f"a {type(value).__name__}")
    if abs(value) > MAX_INTEGER:
        raise _refused("an integer beyond 2**53")
    return value


def _check_names(value: Any) -> None:
    """Names sort by code point and by UTF-16 unit alike only if they are ASCII."""
    if isinstance(value, dict):
        for name, member in value.items():
            if not name.isascii():
                raise _refused("a name that is not ASCII")
            _check_names(member)
    elif isinstance(value, list):
        for member in value:
            _check_names(member)


def _refused(what: str) -> MalformedRequest:
    return MalformedRequest(f"no canonical form: {what}", code="json.not_canonical")
