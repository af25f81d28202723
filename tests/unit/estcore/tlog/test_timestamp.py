"""Time stamps: changed answers are refused, and nothing else than a refusal comes of them."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estcore.errors import AuditChainBroken, ConfigurationError
from estcore.tlog import timestamp
from estcore.tlog.checkpoint import Checkpoint, parse_signed
from estsuite_testing.timestamp_authority import TimestampAuthority

POINT = Checkpoint("test.example/audit", 7, bytes(32))
Stamp = tuple[timestamp.Authority, bytes, int]


@pytest.fixture(scope="module")
def stamp(tmp_path_factory: pytest.TempPathFactory) -> Stamp:
    server = TimestampAuthority(tmp_path_factory.mktemp("time") / "tsa")
    authority = timestamp.Authority.parse("tsa.test", server.anchors.read_bytes())
    request = timestamp.request(POINT)
    return authority, server.stamp(request.der), request.nonce


def test_a_time_stamp_is_of_its_checkpoint_nonce_and_authority(stamp: Stamp) -> None:
    authority, answer, nonce = stamp
    at = timestamp.verify_response(POINT, authority, answer, nonce=nonce)
    assert abs(at - dt.datetime.now(dt.UTC)) < dt.timedelta(hours=1)
    note = f"{POINT.text()}\n" + timestamp.line(authority, answer)
    assert timestamp.stamped_at(parse_signed(note), authority) == at
    for point, wrong in ((Checkpoint("other", 7, bytes(32)), nonce), (POINT, nonce + 1)):
        with pytest.raises(AuditChainBroken) as caught:
            timestamp.verify_response(point, authority, answer, nonce=wrong)
        assert caught.value.code == "timestamp.wrong"
    other = timestamp.Authority("other", authority.anchors)
    with pytest.raises(AuditChainBroken) as caught:
        timestamp.stamped_at(parse_signed(note), other)
    assert caught.value.code == "timestamp.missing"


@given(data=st.data())
def test_a_changed_answer_gives_no_time(stamp: Stamp, data: st.DataObject) -> None:
    """Only octets that the signature does not cover may change, and they change nothing."""
    authority, answer, nonce = stamp
    at = timestamp.verify_response(POINT, authority, answer, nonce=nonce)
    changed = bytearray(answer)
    place = data.draw(st.integers(0, len(answer) - 1))
    changed[place] ^= data.draw(st.integers(1, 255))
    try:
        assert timestamp.verify_response(POINT, authority, bytes(changed), nonce=nonce) == at
    except AuditChainBroken as exc:
        assert exc.code == "timestamp.wrong"


@given(st.binary(max_size=200))
def test_any_octets_are_an_answer_or_a_refusal(stamp: Stamp, octets: bytes) -> None:
    with pytest.raises(AuditChainBroken):
        timestamp.verify_response(POINT, stamp[0], octets)


@pytest.mark.parametrize(
    ("name", "pem"), [("a b", b""), ("", b""), ("a+b", b""), ("a", b"no certificate")]
)
def test_an_authority_that_cannot_be_used_is_refused(name: str, pem: bytes) -> None:
    with pytest.raises(ConfigurationError):
        timestamp.Authority.parse(name, pem)
