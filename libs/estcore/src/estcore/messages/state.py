"""Last values in ``PKI_STATE``: what front ends keep in memory and on disk."""

from __future__ import annotations

import datetime as dt
from hashlib import sha256
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field, field_serializer

from estcore.messages.envelope import DER, Part, Token
from estcore.pki.profile import Profile

Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class AcceptedIssuer(Part):
    """One generation of an issuer whose certificates identify clients."""

    issuer_id: Token
    certificate: DER


class CACertificates(Part):
    """``pki.state.cacerts.<issuer>``: the chain of one issuer, issuing CA first, root last.

    The newest by ``updated_at`` counts. Without ``accepted`` certificates of the first of
    ``chain`` are accepted; with a ``rollover`` front ends report which clients have fetched it.
    """

    issuer_id: Token
    updated_at: dt.datetime
    chain: tuple[DER, ...] = Field(min_length=1)
    extra: tuple[DER, ...] = Field(default=(), description="rollover certificates")
    accepted: tuple[AcceptedIssuer, ...] = Field(
        default=(), description="generations whose certificates clients may present"
    )
    rollover: UUID | None = Field(default=None, description="id of one that is under way")


MOST_FETCHED = 500


class TrustFetched(Part):
    """Core request ``pki.command.ca-signer.fetched``: clients that got the trust of a rollover.

    Known by the certificates they presented; good for nothing but counting.
    """

    rollover: UUID
    fingerprints: tuple[Fingerprint, ...] = Field(
        max_length=MOST_FETCHED, description="SHA-256 of their certificates, hexadecimal"
    )


class TrustFetchCounted(Part):
    """ca-signer's answer: it is recorded; ``new`` slots had not been seen before."""

    new: int


class SecretVerifier(Part):
    """What a front end needs to check one enrollment secret. SHA-256 of 128 random bits or more."""

    secret_id: str
    sha256: str
    not_after: dt.datetime
    one_time: bool


SECRET_SHARDS = tuple(f"{number:02x}" for number in range(64))


SECRET_ID = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,127}$"  # noqa: S105 - a pattern
"""Ids of enrollment secrets: the user name of HTTP Basic, so without a colon."""


def secret_shard(secret_id: str) -> str:
    """Return the shard (``00`` to ``3f``) in which the verifier of a secret is published."""
    return SECRET_SHARDS[sha256(secret_id.encode()).digest()[0] % len(SECRET_SHARDS)]


class SecretShard(Part):
    """``pki.state.secrets.<shard>``: all live secrets whose id hashes to the shard (00 to 3f)."""

    shard: str
    updated_at: dt.datetime
    secrets: tuple[SecretVerifier, ...] = ()


REVOKED_SHARDS = tuple(f"{number:02x}" for number in range(16))


def revoked_shard(serial_number: int) -> str:
    """Return the shard (``00`` to ``0f``) in which a revoked serial number is published."""
    return REVOKED_SHARDS[serial_number % len(REVOKED_SHARDS)]


class RevokedShard(Part):
    """``pki.state.revoked.<issuer>.<shard>``: serial numbers of revoked certificates.

    Those of one issuer that have not expired and whose last octet modulo 16 is the shard (00 to
    0f), held ones included. Front ends refuse early by it; the signer's ledger decides.
    """

    issuer_id: Token
    shard: str
    updated_at: dt.datetime
    serials: tuple[str, ...] = Field(default=(), description="lower-case hexadecimal, sorted")


class RevocationList(Part):
    """A newest CRL of an issuer (RFC 5280 section 5).

    ``pki.state.crl.<issuer>`` is the full one, ``pki.state.crl.<issuer>.<partition>`` a part.
    """

    issuer_id: Token
    partition: str | None = Field(default=None, description="as 16-3; none for the full list")
    number: int
    this_update: dt.datetime
    next_update: dt.datetime
    crl: DER


class RevocationManifest(Part):
    """``pki.state.crl.<issuer>.manifest``: which lists there are; others are over."""

    issuer_id: Token
    updated_at: dt.datetime
    partitions: tuple[str, ...] = Field(description="sorted; the full list is always one more")


class PolicyState(Part):
    """``pki.state.policy.current``: version of the policy the signer decides with."""

    version: str
    updated_at: dt.datetime


class ProfilesState(Part):
    """``pki.state.profiles.current``: the profiles the signer decides with.

    From them front ends answer csrattrs and choose the kind of generated keys, so that csrattrs
    asks for exactly what the signer accepts.
    """

    version: str
    updated_at: dt.datetime
    profiles: tuple[Profile, ...]

    @field_serializer("profiles")
    def _as_written(self, profiles: tuple[Profile, ...]) -> list[dict[str, Any]]:
        # Without defaults: a front end of an older version reads profiles that use nothing new.
        return [p.model_dump(mode="json", exclude_defaults=True) for p in profiles]


class RotationAck(Part):
    """Core request ``pki.ack.<group>``: proof of use relayed by est-frontend to renewal.

    ``jws`` is signed by the new certificate's key over ``{"rotation_id","serial","iat"}``;
    ``peer`` is the certificate of the TLS connection that carried it. Without ``jws`` that
    connection is the proof, and ``peer`` the certificate proven.
    """

    request_id: str
    correlation_id: str
    traceparent: str | None = None
    label: str
    jws: str | None = Field(default=None, max_length=4096)
    peer: DER
    peer_address: str | None = None


class RotationAckAnswered(Part):
    """renewal's answer: accepted, or why not (code and one line)."""

    accepted: bool
    kind: str | None = None
    code: str | None = None
    reason: str | None = None


class RenewedCertificateRequested(Part):
    """Core request ``pki.renewed.<group>``: a client fetches what replaces its certificate.

    ``peer`` is the certificate that authenticated the TLS connection, ``certificate_id`` names the
    one to replace, of the same identity (``estcore.est.renewal_info.cert_id``).
    """

    request_id: str
    correlation_id: str
    label: str
    group: Token
    peer: DER
    certificate_id: str = Field(max_length=128)


class RenewedCertificateAnswered(Part):
    """ca-signer's answer to ``RenewedCertificateRequested``.

    ``ready`` has the certificate; ``pending`` says when to ask again, ``none`` that
    nothing replaces the certificate yet, ``rejected`` why there is no answer.
    """

    outcome: Literal["ready", "pending", "none", "rejected"]
    certificate: DER | None = None
    sealed_key: DER | None = Field(
        default=None, description="EnvelopedData with its key, where ca-signer made that"
    )
    issuer: Token | None = Field(default=None, description="whose certificate it is, as labels say")
    retry_after_s: int | None = None
    kind: str | None = None
    code: str | None = None
    reason: str | None = None
