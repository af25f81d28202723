"""The envelope every message shares, CloudEvents-shaped, and how it becomes bytes.

Unknown fields are ignored on reading, so that a newer producer and an older reader can work
side by side during a rolling update; ``schema_version`` rises when that is not enough.
"""

from __future__ import annotations

import binascii
import datetime as dt
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
)
from pydantic_core import to_json

from estcore.errors import InvariantBroken, MalformedRequest
from estcore.messages.text import without_surrogates

Token = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,63}$")]
CorrelationId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]


def _der(value: object) -> object:
    # DER of everything we carry is a SEQUENCE (0x30); base64 of one begins with an M (0x4d).
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes) and value[:1] != b"\x30":
        return binascii.a2b_base64(value, strict_mode=True)
    return value


DER = Annotated[
    bytes,
    BeforeValidator(_der),
    PlainSerializer(lambda value: binascii.b2a_base64(value, newline=False).decode(), str, "json"),
]
"""A DER SEQUENCE: octets inside, base64 in JSON; either form is taken when constructed."""


class Part(BaseModel):
    """A piece of a message: frozen, unknown fields ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Message(Part):
    """What every message carries besides its own data."""

    id: str = Field(description="unique; also the Nats-Msg-Id")
    source: str = Field(description="service and instance that sent it")
    time: dt.datetime
    correlation_id: CorrelationId
    causation_id: str | None = Field(default=None, description="id of the message it answers to")
    traceparent: str | None = Field(default=None, description="W3C trace context")
    schema_version: int = 1


M = TypeVar("M", bound=Part)


def encode(message: Part) -> bytes:
    """Return the message as JSON; absent values are left out.

    A lone surrogate becomes U+FFFD: one text of a peer must not stop a batch.

    Raises:
        InvariantBroken: a value has no JSON form.
    """
    try:
        return message.model_dump_json(exclude_none=True).encode()
    except ValueError:
        return _encode_replaced(message)


def without_none(**values: Any) -> dict[str, Any]:
    """Return the values that are not None: how a message is written down without its model.

    Where thousands a second are sent, a plain mapping through ``encode_mapping`` costs a third
    of a model; tests read what was sent with the model.
    """
    return {name: value for name, value in values.items() if value is not None}


def encode_mapping(message: dict[str, Any]) -> bytes:
    """Return a mapping of JSON values, datetimes and models as JSON.

    A lone surrogate becomes U+FFFD, as in ``encode``.

    Raises:
        InvariantBroken: a value has no JSON form.
    """
    try:
        return to_json(message, exclude_none=True)
    except ValueError:
        return _encode_replaced(message)


def _encode_replaced(message: Part | dict[str, Any]) -> bytes:
    try:
        return to_json(without_surrogates(message), exclude_none=True)
    except (ValueError, TypeError, RecursionError) as exc:
        raise InvariantBroken("a message has no JSON form", code="message.unencodable") from exc


def decode(model: type[M], data: bytes) -> M:
    """Return the message in ``data``.

    Raises:
        MalformedRequest: not JSON or not this message; names the first wrong field.
    """
    try:
        return model.model_validate_json(data)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(p) for p in first["loc"])
        raise MalformedRequest(
            f"{model.__name__}: {place}: {first['msg'].lower()}", code="message.malformed"
        ) from exc
