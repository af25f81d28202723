"""Revocation lists over plain HTTP: the newest one, for everybody, and nothing else."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
from pathlib import Path

import pytest

from est_frontend.auth.client_certificates import PeerValidator
from est_frontend.revocation.http_server import CRLServer
from est_frontend.settings import CRLListenSettings
from est_frontend.signer_state.cache import SignerState
from estcore.clock import SystemClock
from estcore.messages import topics
from estcore.messages.envelope import encode
from estcore.messages.state import RevocationList
from estsuite_testing.message_keys import SENDERS, store_state

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


def listed(number: int, octets: bytes = b"\x30\x00", at: dt.datetime = NOW) -> RevocationList:
    return RevocationList(
        issuer_id="issuing",
        number=number,
        this_update=at,
        next_update=at + dt.timedelta(hours=10),
        crl=octets,
    )


def state_with(folder: Path, *lists: RevocationList) -> SignerState:
    state = SignerState(folder, PeerValidator(SystemClock()).set_anchors, SystemClock(), SENDERS)
    state.load()
    for one in lists:
        state.apply(topics.crl_topic(one.issuer_id), encode(one))
    return state


def server(state: SignerState) -> CRLServer:
    return CRLServer(CRLListenSettings(port=0), state, SystemClock())


def get(state: SignerState, head: bytes = b"GET /crl/issuing.crl HTTP/1.1\r\n\r\n") -> bytes:
    return server(state).answer(head)


def test_the_newest_list_is_served(tmp_path: Path) -> None:
    later = NOW + dt.timedelta(seconds=1)
    newest = listed(8, b"\x30\x03\x02\x01\x08", later)
    state = state_with(tmp_path, listed(7), newest, listed(6), listed(7))
    head, _, body = get(state).partition(b"\r\n\r\n")
    assert body == newest.crl
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: application/pkix-crl\r\n")
    assert b'ETag: "8"' in head
    age = int(head.partition(b"max-age=")[2].partition(b"\r")[0])
    assert 0 < age <= 3600


def test_a_list_survives_a_restart(tmp_path: Path) -> None:
    store_state(tmp_path, topics.crl_topic("issuing"), listed(7))
    assert get(state_with(tmp_path)).startswith(b"HTTP/1.1 200")


def test_a_list_that_is_over_is_not_kept_by_caches(tmp_path: Path) -> None:
    old = listed(7, at=NOW - dt.timedelta(days=2))
    assert b"max-age=0\r\n" in get(state_with(tmp_path, old))


def test_who_has_it_is_not_sent_it_again(tmp_path: Path) -> None:
    state = state_with(tmp_path, listed(7))
    same = get(state, b'GET /crl/issuing.crl HTTP/1.1\r\nif-none-match: "7"\r\n\r\n')
    assert same.startswith(b"HTTP/1.1 304 ")
    assert same.endswith(b"\r\n\r\n")
    other = get(state, b'GET /crl/issuing.crl HTTP/1.1\r\nIf-None-Match: "6"\r\n\r\n')
    assert other.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"HEAD /crl/issuing.crl HTTP/1.1", b"200"),
        (b"GET /crl/other.crl HTTP/1.1", b"404"),
        (b"GET /crl/../issuing.crl HTTP/1.1", b"404"),
        (b"GET / HTTP/1.1", b"404"),
        (b"GET /.well-known/est/cacerts HTTP/1.1", b"404"),
        (b"POST /crl/issuing.crl HTTP/1.1", b"405"),
        (b"nonsense", b"405"),
    ],
)
def test_nothing_else_is_served(tmp_path: Path, line: bytes, status: bytes) -> None:
    answer = get(state_with(tmp_path, listed(7)), line + b"\r\n\r\n")
    assert answer.split(b" ")[1] == status
    assert answer.endswith(b"\r\n\r\n")


async def test_curl_fetches_it(tmp_path: Path) -> None:
    serving = server(state_with(tmp_path, listed(7)))
    port = await serving.start()
    try:
        out = tmp_path / "got.crl"
        command = ["curl", "-sSf", "-o", str(out), f"http://127.0.0.1:{port}/crl/issuing.crl"]
        await asyncio.to_thread(subprocess.run, command, check=True, timeout=20)
        assert out.read_bytes() == listed(7).crl
    finally:
        await serving.stop()
