"""Renewal information on the bus: what renewal publishes and each front end keeps.

A message on ``pki.renewal.info.<day>`` has entries of certificates that expire on that day, one a
line. Entries are applied in any order, any number of times: the one with the highest ``version`` of
a certificate counts. ``pki.renewal.info.complete`` says that all entries of an epoch are before it.
"""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, model_validator

from estcore.errors import MalformedRequest
from estcore.est.renewal_info import CertificateId, ManagedState, serial_octets
from estcore.ids import digest
from estcore.messages.envelope import Part, decode, encode

MOST_ENTRIES = 1000
_MOST_OCTETS = 256 * 1024
KEY_OCTETS = 16
_SERIAL_OCTETS = 7
RenewalReason = Literal[
    "lifetime",
    "incident",
    "ca_rollover",
    "policy_change",
    "operator",
    "superseded",
    "revoked",
]
MOST_URL = 512
_Second = Annotated[int, Field(ge=0, lt=253_402_300_800)]
"""Until the end of the year 9999 (RFC 5280 section 4.1.2.5)."""


class RenewalInfoEntry(Part):
    """``pki.renewal.info.<day>``, one a line: the window of a certificate, in Unix seconds."""

    key: str = Field(
        pattern=r"^[A-Za-z0-9_-]{21}[AQgw]$",
        description="base64url of 16 octets: the first of the serial number, then of SHA-256 over "
        "key identifier and serial number",
    )
    version: int = Field(
        ge=0, lt=1 << 63, description="the highest counts; 0 when issued, then Unix microseconds"
    )
    start: _Second
    end: _Second
    not_after: _Second = Field(description="end of the certificate; its day is that of the topic")
    rotation: UUID | None = Field(default=None, description="rotation that replaces it")
    reason: RenewalReason | None = Field(default=None, description="none: its lifetime")
    url: str | None = Field(default=None, max_length=MOST_URL, description="explanationURL")
    managed: ManagedState | None = Field(
        default=None, description="ca-signer renews it: scheduled, or available to fetch"
    )

    @model_validator(mode="after")
    def _window(self) -> RenewalInfoEntry:
        if self.start >= self.end:
            raise ValueError("the window does not end after its start")
        return self

    @property
    def key_octets(self) -> bytes:
        """The key as 16 octets."""
        return base64.urlsafe_b64decode(self.key + "==")


class RenewalInfoComplete(Part):
    """``pki.renewal.info.complete``: all entries of an epoch were published before this.

    A different epoch means that renewal published everything again, and front ends read again.
    """

    epoch: UUID
    entries: int = Field(ge=0, description="how many were published")
    published_at: dt.datetime


def entry_octets(certificate_id: CertificateId) -> bytes:
    """Return the 16 octets by which a certificate's entry is found.

    They begin with those of the serial number, and our serial numbers begin with the time: what is
    written together is together on disk, instead of everywhere.
    """
    serial = serial_octets(certificate_id.serial_number)
    hashed = digest([certificate_id.key_id, serial])
    return (serial[:_SERIAL_OCTETS] + hashed)[:KEY_OCTETS]


def entry_key(certificate_id: CertificateId) -> str:
    """Return the same as entries have it."""
    octets = entry_octets(certificate_id)
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")


def encode_entries(entries: Sequence[RenewalInfoEntry]) -> Iterator[bytes]:
    """Yield the payloads of entries of one day, each within the limits of a message."""
    lines: list[bytes] = []
    octets = 0
    for entry in entries:
        line = encode(entry)
        if lines and (len(lines) >= MOST_ENTRIES or octets + len(line) > _MOST_OCTETS):
            yield b"\n".join(lines)
            lines, octets = [], 0
        lines.append(line)
        octets += len(line) + 1
    if lines:
        yield b"\n".join(lines)


def decode_entries(day: str, payload: bytes) -> list[RenewalInfoEntry]:
    """Return the entries of a message about certificates that expire on ``day`` (YYYYMMDD).

    Raises:
        MalformedRequest: too many, a line is no entry, or one is of a different day.
    """
    if payload.count(b"\n") >= MOST_ENTRIES:
        raise MalformedRequest("too many entries", code="message.malformed")
    entries = [decode(RenewalInfoEntry, line) for line in payload.split(b"\n")]
    if any(expiry_day(entry.not_after) != day for entry in entries):
        raise MalformedRequest("an entry is of a different day", code="message.malformed")
    return entries


def expiry_day(not_after: int) -> str:
    """Return the day (UTC, YYYYMMDD) of Unix seconds."""
    return dt.datetime.fromtimestamp(not_after, dt.UTC).strftime("%Y%m%d")
