"""OCSP answers of a signer: bounded, and fewer while requests for certificates wait."""

from __future__ import annotations

import pytest

from ca_signer.revocation.ocsp_limit import OCSPLimit


class Seconds:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def admitted(limit: OCSPLimit, asked: int) -> int:
    return sum(limit.admits() for _ in range(asked))


@pytest.mark.parametrize(("waits", "at_once", "per_s"), [(False, 200, 100), (True, 20, 10)])
def test_a_flood_gets_the_rate_and_a_tenth_while_issuing_waits(
    waits: bool, at_once: int, per_s: int
) -> None:
    now = Seconds()
    limit = OCSPLimit(100, lambda: waits, now)
    assert admitted(limit, 1000) == at_once
    now.at += 1
    assert admitted(limit, 1000) == per_s
    now.at += 3600
    assert admitted(limit, 1000) == at_once


def test_every_rate_admits_something_while_issuing_waits() -> None:
    assert admitted(OCSPLimit(1, lambda: True, Seconds()), 1000) == 1


def test_the_rate_changes_with_what_waits() -> None:
    waits = True
    limit = OCSPLimit(100, lambda: waits, Seconds())
    assert admitted(limit, 10) == 10
    waits = False
    assert admitted(limit, 1000) == 100
