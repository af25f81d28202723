"""Proof of use: a compact JWS by the key of the new certificate (pure).

The service that presents the new certificate signs ``{"rotation_id", "serial", "iat"}`` with its
key; ``estcore.pki.jws`` reads and verifies it.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from cryptography import x509

from estcore.errors import MalformedRequest, NotAuthenticated
from estcore.ids import serial_hex
from estcore.pki import jws
from estcore.pki.parsers import load_certificate

MAX_BYTES = 4096


@dataclass(frozen=True)
class Claims:
    """What a proof says. Not verified until ``verify`` returned."""

    rotation_id: str
    serial: str
    issued_at: dt.datetime


def read_claims(token: str) -> Claims:
    """Return the claims of a proof without checking its signature, to find the key by.

    Raises:
        MalformedRequest: not a compact JWS with these claims.
    """
    if len(token) > MAX_BYTES:
        raise MalformedRequest("the proof is too long", code="proof.malformed")
    try:
        proof = jws.parse(token)
        if proof.header.get("alg") not in jws.ALGORITHMS:
            raise MalformedRequest("the proof's algorithm is not accepted", code="proof.algorithm")
        claims = jws.read_object(proof.payload)
        return Claims(
            rotation_id=_text(claims, "rotation_id"),
            serial=_text(claims, "serial").lower(),
            issued_at=dt.datetime.fromtimestamp(_seconds(claims), dt.UTC),
        )
    except (ValueError, TypeError, KeyError, OverflowError, OSError) as exc:
        raise MalformedRequest("not a proof of use", code="proof.malformed") from exc


def verify(token: str, certificate: bytes) -> None:
    """Check that the key in ``certificate`` (DER) signed the proof.

    Does not check the claims, nor that the certificate is valid.

    Raises:
        NotAuthenticated: another key, another algorithm, or a damaged signature.
    """
    public_key = x509.load_der_x509_certificate(certificate).public_key()
    try:
        jws.algorithm(public_key)
    except ValueError as exc:
        raise NotAuthenticated(
            "no proof is known for this kind of key", code="proof.algorithm"
        ) from exc
    try:
        signed = jws.signature_by(jws.parse(token), public_key)
    except ValueError:
        signed = False
    if not signed:
        raise NotAuthenticated(
            "the proof is not signed by the new certificate's key", code="proof.signature"
        )


def serial_of(certificate: bytes) -> str:
    """Return the serial number of a certificate (DER) as rows have it.

    Raises:
        MalformedRequest: it is none.
    """
    return serial_hex(load_certificate(certificate).serial_number)


def _text(claims: dict[str, object], name: str) -> str:
    value = claims[name]
    if not isinstance(value, str) or not 1 <= len(value) <= 64:  # noqa: PLR2004 - hex or UUID
        raise ValueError(name)
    return value


def _seconds(claims: dict[str, object]) -> int:
    value = claims["iat"]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("iat")
    return value
