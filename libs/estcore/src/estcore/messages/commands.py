"""Commands of operators: signed by the operator's own certificate, answered on core NATS.

``pki.command.<service>.<verb>`` carries a compact JWS (``estcore.pki.jws``) whose payload is a
``Command``. Who may publish it on the bus decides nothing: the service that receives it verifies
the signature, the certificate, the role, the time and that it was not carried out before.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import uuid
from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from pydantic import ConfigDict, Field, JsonValue, ValidationError

from estcore.errors import MalformedRequest, NotAuthorized
from estcore.messages.envelope import Part, Token
from estcore.pki import jws

TYPE = "pki-command+jws"
LIFETIME = dt.timedelta(minutes=5)
"""How long a command may be good for at most."""
SKEW = dt.timedelta(seconds=30)
MAX_OCTETS = 32_768


class Command(Part):
    """What an operator wants done. Unknown fields are refused: they may be what limits it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command_id: uuid.UUID = Field(description="unique in the ledger for ever; repeat it to retry")
    service: Token
    verb: Token
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    iat: int = Field(ge=0, description="when it was signed, seconds since 1970")
    exp: int = Field(ge=0, description="good until then, at most five minutes later")

    @property
    def digest(self) -> bytes:
        """SHA-256 of what is to be done, whenever it was signed."""
        parts = [str(self.command_id), self.service, self.verb, self.arguments]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()


class CommandAnswered(Part):
    """The answer to a command: done with a result, refused with a reason, or not now.

    ``refused`` has kind, code and reason. A repeated command gets the same answer; a repeated
    query gets the present state.
    """

    command_id: str | None = None
    outcome: Literal["done", "refused", "unavailable"]
    result: dict[str, JsonValue] | None = None
    kind: str | None = None
    code: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class SignedCommand:
    """A command and the certificate whose key signed it."""

    command: Command
    certificate: x509.Certificate
    certificate_der: bytes

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the certificate."""
        return hashlib.sha256(self.certificate_der).digest()


def sign_command(key: jws.PrivateKey, certificate_der: bytes, command: Command, /) -> str:
    """Return the command as the service takes it.

    Raises:
        ValueError: the key is not the certificate's.
    """
    body = command.model_dump_json().encode()
    return jws.sign(body, typ=TYPE, key=key, certificate_der=certificate_der)


def read_command(data: bytes) -> SignedCommand:
    """Return a command whose signature is by the certificate it came with.

    Does not ask who that is, nor the time (``check_time``), nor whether it was seen before.

    Raises:
        MalformedRequest: not a command in its one spelling.
        NotAuthenticated: the signature is not by that certificate's key.
    """
    if len(data) > MAX_OCTETS:
        raise MalformedRequest("a command this long is none", code=jws.MALFORMED)
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as exc:
        raise MalformedRequest("this is not a compact JWS", code=jws.MALFORMED) from exc
    signed = jws.verify(text, typ=TYPE)
    try:
        command = Command.model_validate(jws.read_object(signed.payload))
    except (ValidationError, ValueError) as exc:
        raise MalformedRequest("the payload is not a command", code=jws.MALFORMED) from exc
    return SignedCommand(command, signed.certificate, signed.certificate_der)


def check_time(command: Command, now: dt.datetime) -> None:
    """Check that the command is of now.

    Raises:
        NotAuthorized: signed in the future, good for too long, or over.
    """
    moment, skew = now.timestamp(), SKEW.total_seconds()
    if command.exp - command.iat > LIFETIME.total_seconds() or command.exp <= command.iat:
        raise NotAuthorized("a command is good for five minutes at most", code="command.time")
    if command.iat > moment + skew:
        raise NotAuthorized("the command was signed in the future", code="command.time")
    if command.exp <= moment:
        raise NotAuthorized("the command is over; sign it again", code="command.time")
