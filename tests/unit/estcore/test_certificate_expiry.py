"""Metrics of the certificates that settings name."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import BaseModel

from estcore.runtime.certificate_expiry import NOT_AFTER, CertificateExpiry, certificate_files
from estsuite_testing.chains import Pair, certificate


class Bus(BaseModel):
    ca_file: Path | None = None
    key_file: Path | None = None


class Issuer(BaseModel):
    issuer_id: str
    certificate_file: Path
    chain_file: Path


class Settings(BaseModel):
    bus: Bus
    issuers: list[Issuer] = []
    sinks: list[Bus] = []
    trust: dict[str, Bus] = {}
    policy_file: Path | None = None


def _value(setting: str) -> float | None:
    for metric in NOT_AFTER.collect():
        for sample in metric.samples:
            if sample.labels["setting"] == setting:
                return sample.value
    return None


def _write(path: Path, *certificates: Pair) -> Path:
    path.write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c, _ in certificates))
    return path


async def _read(settings: Settings) -> None:
    stop = asyncio.Event()
    job = asyncio.create_task(CertificateExpiry(settings).run(stop))
    async with asyncio.timeout(10):
        while _value("bus.ca_file") is None:
            await asyncio.sleep(0.01)
    stop.set()
    await job


@pytest.fixture(autouse=True)
def forget() -> None:
    with contextlib.suppress(KeyError):
        NOT_AFTER.clear()


def test_files_are_named_by_their_setting_and_keys_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pem"
    settings = Settings(
        bus=Bus(ca_file=path, key_file=path),
        issuers=[Issuer(issuer_id="issuing-1", certificate_file=path, chain_file=path)],
        sinks=[Bus(), Bus(ca_file=path)],
        trust={"corporate": Bus(ca_file=path)},
        policy_file=path,
    )
    assert set(certificate_files(settings)) == {
        "bus.ca_file",
        "issuers.issuing-1.certificate_file",
        "issuers.issuing-1.chain_file",
        "sinks.1.ca_file",
        "trust.corporate.ca_file",
    }


async def test_of_a_chain_the_first_counts_and_of_trust_anchors_the_last(tmp_path: Path) -> None:
    short, long_ = certificate("short"), certificate("long", ca=True)
    both = _write(tmp_path / "both.pem", long_, short)
    issuer = Issuer(issuer_id="i", certificate_file=both, chain_file=both)
    await _read(Settings(bus=Bus(ca_file=both), issuers=[issuer]))
    assert _value("bus.ca_file") == long_[0].not_valid_after_utc.timestamp()
    assert _value("issuers.i.chain_file") == short[0].not_valid_after_utc.timestamp()


@pytest.mark.parametrize("octets", [None, b"", b"no certificate"])
async def test_a_file_that_cannot_be_read_is_zero(tmp_path: Path, octets: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if octets is not None:
        path.write_bytes(octets)
    await _read(Settings(bus=Bus(ca_file=path)))
    assert _value("bus.ca_file") == 0
