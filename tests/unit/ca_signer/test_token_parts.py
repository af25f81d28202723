"""The parts of a token's key store that need no token: breaker, protocol, settings, files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from ca_signer.circuit_breaker import Breaker
from ca_signer.settings import IssuerSettings, SignerSettings, TokenSettings
from ca_signer.signing import issuers, signatures
from ca_signer.signing.hsm.protocol import (
    MAX_FRAME,
    Failed,
    Frame,
    FrameReader,
    Key,
    Kind,
    Mechanism,
    Open,
    ProtocolBroken,
    decode_keys,
    decode_sign,
    encode_keys,
    encode_sign,
)
from estcore.errors import ConfigurationError
from estcore.pki.profile import parse_model

KEY = Key("01", "ca", "EC", "0603", "0441", "", "", sensitive=True, extractable=False)


def breaker() -> Breaker:
    return Breaker(failures=3, open_s=1, longest_s=5)


def state_of(breaker: Breaker) -> str:
    return breaker.state


def test_the_breaker_opens_after_failures_in_a_row() -> None:
    one = breaker()
    for _ in range(2):
        one.failed(0)
    one.succeeded()
    for _ in range(2):
        one.failed(0)
    assert one.admit(0)
    one.failed(0)
    assert one.state == "open"
    assert not one.admit(0.9)


def test_an_open_breaker_lets_one_probe_through() -> None:
    one = breaker()
    for _ in range(3):
        one.failed(0)
    assert one.admit(1)
    assert state_of(one) == "half_open"
    assert not one.admit(1)
    one.succeeded()
    assert state_of(one) == "closed"
    assert one.admit(1)


def test_a_failed_probe_doubles_the_pause_up_to_the_longest() -> None:
    one = breaker()
    for _ in range(3):
        one.failed(0)
    now, pauses = 1.0, []
    for _ in range(4):
        assert one.admit(now)
        one.failed(now)
        pause = next(p for p in (1, 2, 4, 5, 8) if one.due(now + p))
        pauses.append(pause)
        now += pause
    assert pauses == [2, 4, 5, 5]


def test_a_probe_that_never_ends_blocks_nothing() -> None:
    one = breaker()
    for _ in range(3):
        one.failed(0)
    assert one.admit(1)
    assert not one.admit(1.9)
    assert one.admit(2)


frames = st.builds(Frame, st.sampled_from(Kind), st.integers(0, 2**32 - 1), st.binary(max_size=300))


@given(st.lists(frames, max_size=6), st.integers(1, 40))
def test_frames_are_read_as_written_however_they_are_cut(many: list[Frame], size: int) -> None:
    stream = b"".join(frame.encode() for frame in many)
    reader = FrameReader()
    found = [f for i in range(0, len(stream), size) for f in reader.feed(stream[i : i + size])]
    assert found == many


@given(st.binary(max_size=200))
def test_any_bytes_give_frames_or_an_error_and_nothing_else(data: bytes) -> None:
    try:
        FrameReader().feed(data)
    except ProtocolBroken:
        return


@given(st.binary(max_size=100))
def test_any_body_gives_a_value_or_an_error_and_nothing_else(data: bytes) -> None:
    for decode in (Open.decode, Failed.decode, decode_keys, decode_sign):
        try:
            decode(data)
        except ProtocolBroken:
            continue


def test_a_frame_that_is_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProtocolBroken):
        FrameReader().feed((MAX_FRAME + 1).to_bytes(4, "big"))


def test_bodies_are_read_as_written() -> None:
    assert decode_keys(encode_keys([KEY, KEY])) == [KEY, KEY]
    assert decode_sign(encode_sign(3, Mechanism.EDDSA, b"tbs")) == (3, Mechanism.EDDSA, b"tbs")
    request = Open("/m.so", "label", "", "1234", write=False)
    assert Open.decode(request.encode()) == request


@pytest.mark.parametrize(
    "change", [{"more": "x"}, {"phase": None}, {"text": 7}, {"error": True}], ids=str
)
def test_a_body_with_other_fields_or_types_is_refused(change: dict[str, Any]) -> None:
    raw = json.loads(Failed("sign", "DeviceError", "").encode()) | change
    with pytest.raises(ProtocolBroken):
        Failed.decode(json.dumps(raw).encode())


def test_the_pin_is_not_in_what_a_request_shows() -> None:
    assert "1234" not in repr(Open("/m.so", "label", "", "1234", write=False))


def test_an_ecdsa_signature_of_another_length_is_no_signature() -> None:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    with pytest.raises(InvalidSignature):
        signatures.from_token(key, bytes(64))


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_point_of_a_key_is_read_with_and_without_its_wrapping(wrapped: bool) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    key_of_token = Key(
        key_id="01", label="", kind="EC", ec_params="06082a8648ce3d030107",
        ec_point=(b"\x04\x41" * wrapped + point).hex(), modulus="", exponent="",
        sensitive=True, extractable=False,
    )  # fmt: skip
    assert signatures.public_key(key_of_token) == key


def test_a_key_that_is_not_understood_is_none() -> None:
    assert signatures.public_key(KEY) is None


def token(**changes: Any) -> dict[str, Any]:
    return {"module": "/m.so", "label": "t", "pin_file": "/pin", "key_id": "01"} | changes


def issuer(**changes: Any) -> dict[str, Any]:
    files = {"issuer_id": "i", "certificate_file": "/c", "chain_file": "/d"}
    return files | {"token": token()} | changes


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (issuer(key_file="/k", passphrase_file="/p"), "exactly one"),
        (issuer(token=None), "exactly one"),
        (issuer(token=None, key_file="/k"), "go together"),
        (issuer(token=token(serial="1")), "label or its serial"),
        (issuer(token=token(label=None)), "label or its serial"),
        (issuer(token=token(slot=1)), "slot"),
        (issuer(token=token(key_id="1")), "key_id"),
    ],
    ids=["two keys", "no key", "no passphrase", "two names", "no name", "unknown", "odd hex"],
)
def test_settings_name_exactly_one_key(raw: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        parse_model(IssuerSettings, raw, Path("settings"))


@pytest.mark.parametrize("change", [{"queue": 63}, {"wait_s": 15}], ids=str)
def test_a_token_that_cannot_take_a_batch_within_its_lease_is_refused(
    change: dict[str, Any],
) -> None:
    raw = {
        "bus": {"url": "nats://127.0.0.1", "nkey_seed_file": "/s"},
        "database": {"url": "postgresql://u@localhost/d"},
        "policy_file": "/p",
        "profiles_file": "/p",
        "issuers": [issuer(token=token(**change))],
        "groups": {"default": {"labels": ["a"], "profiles": ["b"]}},
    }
    with pytest.raises(ConfigurationError, match="token"):
        parse_model(SignerSettings, raw, Path("settings"))


def test_without_the_extra_a_token_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pkcs11" else find(name, *a)
    )
    with pytest.raises(ConfigurationError, match=r"estsuite-signer\[pkcs11\]") as caught:
        issuers.check_token(TokenSettings.model_validate(token()))
    assert caught.value.code == "keystore.extra"


def test_a_pin_file_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    module, pin = tmp_path / "m.so", tmp_path / "pin"
    module.touch()
    pin.write_text("1234")
    pin.chmod(0o644)
    with pytest.raises(ConfigurationError, match="others may read"):
        issuers.check_token(TokenSettings.model_validate(token(module=module, pin_file=pin)))
    pin.chmod(0o600)
    issuers.check_token(TokenSettings.model_validate(token(module=module, pin_file=pin)))
    module.unlink()
    with pytest.raises(ConfigurationError, match="no PKCS#11 module"):
        issuers.check_token(TokenSettings.model_validate(token(module=module, pin_file=pin)))
