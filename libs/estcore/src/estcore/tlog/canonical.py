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
