"""Time stamps of checkpoints by an authority (RFC 3161), as lines of the signed note (pure).

A time stamp is a signature line like those of witnesses, so exports, archives and proofs have it,
and readers that do not know it pass it by (C2SP signed-note):

    — <name of the authority> <base64 of key hash and TimeStampResp, DER>

The key hash is of the name and a type of this project (0xff and a string), since no single key
signs for an authority: trust anchors decide. What is stamped is the text of the checkpoint, so
``openssl ts -verify -data TEXT -in RESPONSE`` verifies it as well.

A time stamp proves that the records under the checkpoint existed then. It does not prove that they
are true, nor that none was removed before.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import re
from dataclasses import dataclass

from cryptography import x509

from estcore.errors import AuditChainBroken, ConfigurationError
from estcore.tlog.checkpoint import Checkpoint, SignedCheckpoint

MAX_RESPONSE = 65_536
_TYPE = b"\xffestsuite rfc3161"
_KEY_HASH_BYTES = 4
_NAME = re.compile(r"[^\s+]{1,200}")
_MISSING, _WRONG = "timestamp.missing", "timestamp.wrong"


@dataclass(frozen=True)
class Authority:
    """A time-stamping authority: the name in signature lines, and what its certificates chain to.

    ``anchors`` are trust anchors, and intermediate certificates that answers do not have.
    """

    name: str
    anchors: tuple[x509.Certificate, ...]

    @classmethod
    def parse(cls, name: str, pem: bytes) -> Authority:
        """Return the authority with the anchors in a PEM file.

        Raises:
            ConfigurationError: the name or the file cannot be used.
        """
        if not _NAME.fullmatch(name):
            raise ConfigurationError("the name of an authority has no white space and no plus sign")
        try:
            anchors = tuple(x509.load_pem_x509_certificates(pem))
        except ValueError as exc:
            raise ConfigurationError(f"no certificates in PEM for the authority {name}") from exc
        return cls(name, anchors)

    @property
    def key_hash(self) -> bytes:
        """SHA-256(name || 0x0A || type), the first four octets."""
        return hashlib.sha256(self.name.encode() + b"\n" + _TYPE).digest()[:_KEY_HASH_BYTES]


@dataclass(frozen=True)
class Request:
    """A request for a time stamp: its DER, and the nonce that the answer has to repeat."""

    der: bytes
    nonce: int


def request(checkpoint: Checkpoint) -> Request:
    """Return a new request, of the SHA-512 of a checkpoint, with a nonce and certificates."""
    from rfc3161_client import TimestampRequestBuilder

    built = TimestampRequestBuilder().data(checkpoint.text().encode()).build()
    if built.nonce is None:
        raise ValueError("a request without nonce")
    return Request(built.as_bytes(), built.nonce)


def line(authority: Authority, response: bytes) -> str:
    """Return an answer as a signature line, ended; nothing is verified."""
    octets = base64.b64encode(authority.key_hash + response).decode()
    return f"— {authority.name} {octets}\n"


def verify_response(
    checkpoint: Checkpoint, authority: Authority, response: bytes, *, nonce: int | None = None
) -> dt.datetime:
    """Return the time in an answer, aware and UTC, which the authority's certificates prove.

    The certificates have to be valid at that time, not now. Their revocation is not checked.

    Raises:
        AuditChainBroken: the answer is malformed, a refusal, of a different checkpoint or nonce, or
            does not chain to the authority's anchors.
        ConfigurationError: the library is not installed.
    """
    try:
        from rfc3161_client import VerifierBuilder, decode_timestamp_response
    except ImportError as exc:
        raise ConfigurationError(
            "time stamps need the extra timestamps: estsuite-client[timestamps]"
        ) from exc
    # The library adds to a list that is a default argument's: give it one of our own.
    builder = VerifierBuilder(roots=list(authority.anchors), intermediates=[], nonce=nonce)
    try:
        answer = decode_timestamp_response(response)
        builder.build().verify_message(answer, checkpoint.text().encode())
        at = answer.tst_info.gen_time
    except Exception as exc:  # Bulkhead: whatever the library raises, the time stamp is refused.
        # Of changed octets it raises errors of pyca/cryptography too, and assertions.
        reason = " ".join(str(exc).split())[:200]
        raise AuditChainBroken(
            f"checkpoint {checkpoint.size} has no valid time stamp of {authority.name}: {reason}",
            code=_WRONG,
        ) from exc
    return at if at.tzinfo else at.replace(tzinfo=dt.UTC)


def stamped_at(signed: SignedCheckpoint, authority: Authority) -> dt.datetime:
    """Return when an authority stamped a checkpoint, the earliest time if it did so twice.

    Raises:
        AuditChainBroken: it did not (``timestamp.missing``), or a time stamp is wrong.
    """
    mine = [
        octets
        for name, key_hash, octets in signed.signatures
        if name == authority.name and key_hash == authority.key_hash
    ]
    if not mine:
        raise AuditChainBroken(
            f"checkpoint {signed.checkpoint.size} is not stamped by {authority.name}", code=_MISSING
        )
    return min(verify_response(signed.checkpoint, authority, octets) for octets in mine)
