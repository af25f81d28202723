"""Reading signed commands: any octets give a command or a rejection, and nothing else."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import json
import uuid

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from estcore.errors import MalformedRequest, NotAuthenticated, RequestRejected
from estcore.messages.commands import Command, read_command, sign_command

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "boss")])
CERTIFICATE = (
    x509.CertificateBuilder(NAME, NAME, KEY.public_key(), 7, NOW, NOW + dt.timedelta(days=1))
    .sign(KEY, SHA256())
    .public_bytes(Encoding.DER)
)
COMMAND = Command(
    command_id=uuid.uuid4(), service="ca-signer", verb="test", arguments={"a": 1}, iat=1, exp=2
)
GOOD = sign_command(KEY, CERTIFICATE, COMMAND).encode()


def b64(octets: bytes) -> bytes:
    return base64.urlsafe_b64encode(octets).rstrip(b"=")


def test_what_was_signed_is_read() -> None:
    read = read_command(GOOD)
    assert read.command == COMMAND
    assert read.certificate_der == CERTIFICATE


@given(place=st.integers(0, len(GOOD) - 1), octet=st.integers(0, 255))
def test_any_changed_octet_is_refused(place: int, octet: int) -> None:
    changed = GOOD[:place] + bytes((octet,)) + GOOD[place + 1 :]
    if changed == GOOD:
        return
    try:
        read = read_command(changed)
    except RequestRejected:
        return
    # Only the parts of the certificate that its own key does not cover may differ.
    assert read.command == COMMAND
    assert read.certificate_der != CERTIFICATE


@given(st.binary(max_size=300))
def test_any_octets_are_refused(octets: bytes) -> None:
    with pytest.raises((MalformedRequest, NotAuthenticated)):
        read_command(octets)


@given(st.recursive(st.none() | st.text() | st.integers(), lambda s: st.dictionaries(st.text(), s)))
def test_any_header_and_payload_are_refused_or_read(value: object) -> None:
    part = b64(json.dumps(value).encode())
    with contextlib.suppress(MalformedRequest, NotAuthenticated):
        read_command(b".".join((part, part, part)))


@pytest.mark.parametrize(
    "change",
    [
        {"alg": "none"},
        {"alg": "HS256"},
        {"alg": "ES384"},
        {"typ": "JWT"},
        {"crit": ["x"]},
        {"jwk": {}},
        {"x5c": []},
        {"x5c": [base64.b64encode(CERTIFICATE).decode()] * 2},
        {"x5c": base64.b64encode(CERTIFICATE).decode()},
    ],
)
def test_another_header_is_refused(change: dict[str, object]) -> None:
    head, payload, signature = GOOD.split(b".")
    header = json.loads(base64.urlsafe_b64decode(head + b"==")) | change
    with pytest.raises(MalformedRequest):
        read_command(b".".join((b64(json.dumps(header).encode()), payload, signature)))


def test_a_member_that_stands_twice_is_refused() -> None:
    head, payload, signature = GOOD.split(b".")
    body = base64.urlsafe_b64decode(payload + b"==")
    twice = body[:-1] + b',"verb":"other"}'
    with pytest.raises((MalformedRequest, NotAuthenticated)):
        read_command(b".".join((head, b64(twice), signature)))


def test_an_unknown_field_is_refused() -> None:
    """It may be what limits the command."""
    from estcore.messages.commands import TYPE
    from estcore.pki.jws import sign

    body = json.dumps({**COMMAND.model_dump(mode="json"), "only_if": "monday"}).encode()
    text = sign(body, typ=TYPE, key=KEY, certificate_der=CERTIFICATE)
    with pytest.raises(MalformedRequest):
        read_command(text.encode())
