"""OCSP answers of a signer: bounded, and fewer while requests for certificates wait."""

from __future__ import annotations

from ca_signer.revocation.ocsp_limit import OCSPLimit


def admitted(limit: OCSPLimit, asked: int) -> int:
    return sum(limit.admits() for _ in range(asked))


def test_a_flood_gets_the_rate_and_a_tenth_while_issuing_waits() -> None:
    assert 200 <= admitted(OCSPLimit(100, lambda: False), 1000) <= 202
    assert 20 <= admitted(OCSPLimit(100, lambda: True), 1000) <= 21


def test_every_rate_admits_something_while_issuing_waits() -> None:
    assert admitted(OCSPLimit(1, lambda: True), 1000) == 1


def test_the_rate_changes_with_what_waits() -> None:
    waits = True
    limit = OCSPLimit(100, lambda: waits)
    assert admitted(limit, 10) == 10
    waits = False
    assert 100 <= admitted(limit, 1000) <= 102
