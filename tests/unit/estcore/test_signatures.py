"""Signatures of messages: every octet counts, and so does every sender's right to its topic."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from estcore.errors import ConfigurationError, NotAuthenticated
from estcore.messages import permissions, topics
from estcore.messages.signatures import MessageKey, Senders, sender_key
from estsuite_testing.message_keys import SEEDS, SENDERS, message_key

TOPICS = {
    "check-store": ("audit.refusal.ca-signer.check-store",),
    "est-frontend": ("est.request.default.issuing.normal", "pki.ack.default"),
    "ca-signer": ("pki.state.secrets.00", "est.reply.default.f.1", "pki.certificate.issued.a.b"),
    "ca-signer-upstream": ("pki.state.cacerts.corporate", "pki.certificate.issued.a.b"),
    "renewal": ("pki.rotation.due.a.b", "audit.issue.renewal", topics.REANNOUNCE_TOPIC),
    "audit": ("audit.issue.audit", topics.REANNOUNCE_TOPIC),
}
FORBIDDEN = {
    "est-frontend": (
        *("est.request.other.issuing.normal", "est.request.default.other.normal"),
        *("est.request.default.issuing", "est.request.default.issuing.normal.x", "pki.ack.other"),
        *("pki.state.secrets.00", "audit.issue.ca-signer", "audit.refusal.ca-signer.x"),
        *("pki.certificate.issued.a.b", "est.reply.default.f.1", "_INBOX_estfrontend.x"),
        *("audit.refusal.est-frontend.other", "canary.est-frontend.other", "canary.renewal"),
    ),
    "ca-signer-upstream": ("pki.state.cacerts.issuing", "pki.state.secrets.00", "pki.state.policy"),
    "renewal": ("pki.state.secrets.00", "pki.certificate.revoked.a.b", "audit.issue.ca-signer"),
    "audit": ("audit.issue.ca-signer", "pki.rotation.due.a.b", "pki.certificate.issued.a.b"),
    "ca-signer": ("audit.issue.audit", "audit.issue.renewal", "est.request.default.issuing.normal"),
}


@pytest.mark.parametrize("service", TOPICS)
def test_a_sender_is_who_signed_on_a_topic_of_its_own(service: str) -> None:
    key = message_key(service, "one")
    for topic in TOPICS[service]:
        sender = SENDERS.verify(topic, b"{}", key.sign(topic, b"{}"))
        assert (sender.service, sender.instance, sender.key_id) == (service, "one", key.key_id)
        assert sender.group == ("default" if service == "est-frontend" else "")


@pytest.mark.parametrize(
    ("service", "topic"), [(s, t) for s, found in FORBIDDEN.items() for t in found]
)
def test_a_sender_has_no_other_topic(service: str, topic: str) -> None:
    with pytest.raises(NotAuthenticated, match="may not publish"):
        SENDERS.verify(topic, b"{}", message_key(service).sign(topic, b"{}"))


@given(st.binary(max_size=64), st.integers(0, 10**6), st.integers(1, 255))
def test_every_changed_octet_is_noticed(payload: bytes, place: int, change: int) -> None:
    topic = "pki.rotation.due.a.b"
    header = message_key("renewal").sign(topic, payload)
    SENDERS.verify(topic, payload, header)
    whole = bytearray(b"\n".join((header.encode(), topic.encode(), payload)))
    place %= len(whole)
    whole[place] ^= change
    parts = bytes(whole).split(b"\n", 2)
    if len(parts) != 3:
        return
    changed = [part.decode("latin-1") for part in parts[:2]]
    with pytest.raises(NotAuthenticated):
        SENDERS.verify(changed[1], parts[2], changed[0])


@given(st.one_of(st.none(), st.text(max_size=200)))
def test_no_header_raises_anything_else(header: str | None) -> None:
    with pytest.raises(NotAuthenticated):
        SENDERS.verify("pki.rotation.due.a.b", b"{}", header)


def test_an_answer_counts_by_the_services_that_may_give_it() -> None:
    header = message_key("renewal").sign_answer("0123", b"{}")
    assert SENDERS.verify_answer("0123", b"{}", header, services=("renewal",)).service == "renewal"
    for question, services in (("0123", ("ca-signer",)), ("0124", ("renewal",))):
        with pytest.raises(NotAuthenticated):
            SENDERS.verify_answer(question, b"{}", header, services=services)


def test_an_answer_counts_on_no_topic() -> None:
    """A service answers whatever it is asked: the asker must not choose what that is signed for."""
    for question in ("pki.rotation.due.a.b", "0123"):
        header = message_key("renewal").sign_answer(question, b"{}")
        for topic in (question, f"_ANSWER.{question}"):
            with pytest.raises(NotAuthenticated):
                SENDERS.verify(topic, b"{}", header)


def test_openssl_verifies_a_signature(tmp_path: Path) -> None:
    topic, payload = "audit.issue.renewal", b'{"records":[]}'
    key = message_key("renewal", "r-0")
    public = Ed25519PublicKey.from_public_bytes(key.public_key)
    (tmp_path / "key.pem").write_bytes(
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    signature = key.sign(topic, payload).split(" ")[3]
    (tmp_path / "signature").write_bytes(base64.urlsafe_b64decode(signature + "=="))
    signed = b"estsuite message v1\n" + topic.encode() + b"\nr-0\n" + payload
    (tmp_path / "signed").write_bytes(signed)
    subprocess.run(
        ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", "key.pem",
         "-in", "signed", "-sigfile", "signature"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip


def test_replicas_give_a_message_one_id_and_others_another() -> None:
    ids = {message_key(service, i).message_id("m") for service in SEEDS for i in ("a", "b")}
    assert len(ids) == len(SEEDS)


def member(**changes: Any) -> dict[str, Any]:
    found = sender_key(MessageKey(SEEDS["renewal"], "x"), "renewal") | changes
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize(
    "document",
    [
        "", "[]", "{}", '{"keys":{}}', '{"keys":[1]}', '{"keys":["x"]}',
        *(
            json.dumps({"keys": [member(**changes)]})
            for changes in (
                {"kty": "EC"}, {"crv": "X25519"}, {"x": None}, {"x": "AA"}, {"x": "*" * 43},
                {"service": None}, {"service": "other"}, {"service": "est-frontend"},
                {"service": "est-frontend", "group": "a.b", "issuers": ["issuing"]},
                {"service": "est-frontend", "group": "default", "issuers": [">"]},
                {"group": 7}, {"issuers": "all"},
            )
        ),
        json.dumps({"keys": [member(), member(service="audit")]}),
    ],
)  # fmt: skip
def test_a_wrong_senders_file_is_refused(document: str) -> None:
    with pytest.raises(ConfigurationError):
        Senders.read(document)


def test_a_service_may_have_two_keys_while_one_replaces_the_other() -> None:
    old, new = message_key("renewal"), MessageKey("another seed", "test")
    senders = Senders([sender_key(old, "renewal"), sender_key(new, "renewal")])
    for key in (old, new):
        topic = "audit.issue.renewal"
        assert senders.verify(topic, b"", key.sign(topic, b"")).service == "renewal"


def test_no_user_may_publish_to_an_inbox() -> None:
    users = [permissions.of_service(s, group="g", issuers=("i",)) for s in SEEDS]
    for user in (*users, permissions.operator(), permissions.agent("a", "b")):
        assert not [topic for topic in user.publish if topic.startswith(("_", ">", "*"))]


def test_a_front_end_can_fill_no_stream_with_topics_of_its_choice() -> None:
    """Each topic that a stream stores is written out, and bounded in messages and octets."""
    for topic in permissions.frontend("ward", ("issuing", "corporate")).publish:
        name = topics.stream_of(topic)
        if name is None:
            continue
        stream = next(s for s in topics.STREAMS if s.name == name)
        assert "*" not in topic, topic
        assert ">" not in topic, topic
        assert stream.last_per_topic or stream.max_per_topic > 0, topic
        assert 0 < stream.max_message_bytes <= 128 * 1024, topic
