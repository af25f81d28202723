"""Who sent a message: Ed25519 signatures over topic, instance and payload (RFC 8032).

Every process signs what it sends with the key of its service; a receiver verifies with the public
keys in its senders file, and checks that the sender has the right to publish on that topic. So
neither NATS nor a service that writes past its rights can send in the name of a different one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estcore.errors import ConfigurationError, NotAuthenticated
from estcore.ids import is_token
from estcore.messages import permissions
from estcore.messages.permissions import Permissions

HEADER = "Est-Signature"
QUESTION = "Est-Question"
"""Random name of a request, for which the answer is signed: its reply subject is rewritten
between accounts."""
_VERSION = "v1"
_SIGNED = b"estsuite message v1\n"
_KEY_INFO = b"estsuite message key v1"
_ID_INFO = b"estsuite message id v1"
_PARTS = 4
_OCTETS = 32


@dataclass(frozen=True)
class Sender:
    """Who signed a message. ``group`` is that of a front end, else empty."""

    service: str
    group: str
    instance: str
    key_id: str


class MessageKey:
    """The private key with which one process signs its messages."""

    def __init__(self, seed: str, instance: str) -> None:
        """Derive the key from the NKey seed of the service (HKDF, RFC 5869).

        It is not the NKey itself: a NATS server has its clients sign octets of its choice.
        """
        secret = _derived(seed, _KEY_INFO)
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self._id_key = _derived(seed, _ID_INFO)
        self.public_key = _raw(self._key.public_key())
        self.key_id = thumbprint(self.public_key)
        self.instance = instance
        self._prefix = f"{_VERSION} {self.key_id} {instance} "

    def sign(self, topic: str, payload: bytes) -> str:
        """Return the header of a message on ``topic``."""
        signature = self._key.sign(_signed(topic, self.instance, payload))
        return self._prefix + _encode(signature)

    def sign_answer(self, question: str, payload: bytes) -> str:
        """Return the header of the answer to a request named ``question``."""
        return self.sign(_answer_topic(question), payload)

    def message_id(self, message_id: str) -> str:
        """Return the Nats-Msg-Id of a message.

        Equal for all processes of the service and unknown to others, who could otherwise have
        JetStream drop the message as a duplicate of theirs.
        """
        return hmac.new(self._id_key, message_id.encode(), hashlib.sha256).hexdigest()[:32]


class Senders:
    """The public keys of every service, and what each may publish."""

    def __init__(self, keys: Sequence[Mapping[str, Any]]) -> None:
        """Take the keys of a JWK set.

        Raises:
            ConfigurationError: a key is malformed, or two are the same.
        """
        self._keys: dict[str, _Known] = {}
        for member in keys:
            known = _known(member)
            if known.key_id in self._keys:
                raise ConfigurationError("two senders have the same key", code="senders.duplicate")
            self._keys[known.key_id] = known

    @classmethod
    def read(cls, text: str) -> Senders:
        """Return the senders of a senders file, a JWK set (RFC 7517).

        Raises:
            ConfigurationError: it is not one.
        """
        try:
            value = json.loads(text)
        except ValueError as exc:
            raise ConfigurationError(
                "the senders file is not JSON", code="senders.malformed"
            ) from exc
        if not isinstance(value, dict) or not isinstance(value.get("keys"), list):
            raise ConfigurationError("the senders file is not a JWK set", code="senders.malformed")
        return cls(value["keys"])

    def verify(self, topic: str, payload: bytes, header: str | None) -> Sender:
        """Return who signed a message and may publish on ``topic``.

        Raises:
            NotAuthenticated: not signed, not by a known key, or the sender has no right to it.
        """
        sender, known = self._verified(topic, payload, header)
        if known.allowed.fullmatch(topic) is None:
            raise NotAuthenticated(
                f"{sender.service} may not publish on {topic[:200]}", code="message.sender"
            )
        return sender

    def verify_answer(
        self, question: str, payload: bytes, header: str | None, *, services: Sequence[str]
    ) -> Sender:
        """Return who signed the answer to the request named ``question``.

        Raises:
            NotAuthenticated: not signed, not by a known key, or not by one of ``services``.
        """
        sender, _ = self._verified(_answer_topic(question), payload, header)
        if sender.service not in services:
            raise NotAuthenticated(f"the answer is by {sender.service}", code="message.sender")
        return sender

    def _verified(self, topic: str, payload: bytes, header: str | None) -> tuple[Sender, _Known]:
        if header is None:
            raise NotAuthenticated("the message is not signed", code="message.unsigned")
        parts = header.split(" ")
        known = self._keys.get(parts[1]) if len(parts) == _PARTS else None
        if known is None or parts[0] != _VERSION or not is_token(parts[2]):
            raise NotAuthenticated("the message is signed by no known key", code="message.key")
        instance = parts[2]
        try:
            known.key.verify(_decode(parts[3]), _signed(topic, instance, payload))
        except (InvalidSignature, ValueError) as exc:
            raise NotAuthenticated(
                "the signature of the message is wrong", code="message.signature"
            ) from exc
        return Sender(known.service, known.group, instance, known.key_id), known


NO_SENDERS = Senders(())
"""Every message is refused."""


@dataclass(frozen=True)
class _Known:
    key_id: str
    key: Ed25519PublicKey
    service: str
    group: str
    allowed: re.Pattern[str]


def sender_key(
    key: MessageKey, service: str, *, group: str = "", issuers: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the public half of a service's key as a member of the senders file (RFC 8037)."""
    member: dict[str, Any] = {
        "kty": "OKP",
        "crv": "Ed25519",
        "kid": key.key_id,
        "x": _encode(key.public_key),
        "service": service,
    }
    if group:
        member["group"] = group
    if issuers:
        member["issuers"] = list(issuers)
    return member


def thumbprint(public_key: bytes) -> str:
    """Return the JWK thumbprint of an Ed25519 public key (RFC 7638, RFC 8037 appendix A.3)."""
    text = f'{{"crv":"Ed25519","kty":"OKP","x":"{_encode(public_key)}"}}'
    return _encode(hashlib.sha256(text.encode()).digest())


def _known(member: object) -> _Known:
    if not isinstance(member, dict) or (member.get("kty"), member.get("crv")) != ("OKP", "Ed25519"):
        raise ConfigurationError("a sender's key is not an Ed25519 JWK", code="senders.malformed")
    service, group = member.get("service"), member.get("group", "")
    issuers = member.get("issuers", [])
    if not isinstance(group, str) or not isinstance(issuers, list):
        raise ConfigurationError("a sender's group or issuers is wrong", code="senders.malformed")
    try:
        octets = _decode(str(member.get("x", "")))
        key = Ed25519PublicKey.from_public_bytes(octets)
    except ValueError as exc:
        raise ConfigurationError(
            f"the key of sender {service} is no Ed25519 key", code="senders.malformed"
        ) from exc
    allowed = permissions.of_service(str(service), group=group, issuers=tuple(map(str, issuers)))
    return _Known(thumbprint(octets), key, str(service), group, _matcher(allowed))


def topic_pattern(*topics: str) -> re.Pattern[str]:
    """Return what matches topics with wildcards: * is one token, > is one or more at the end."""
    patterns = (re.escape(t).replace(r"\*", r"[^.]+").replace(">", ".+") for t in topics)
    return re.compile("|".join(patterns))


def _matcher(allowed: Permissions) -> re.Pattern[str]:
    return topic_pattern(*(t for t in allowed.publish if not t.startswith(("$", "_"))))


def _answer_topic(question: str) -> str:
    """Return what an answer is signed for in place of a topic: no sender may publish on it."""
    return f"_ANSWER.{question}"


def _signed(topic: str, instance: str, payload: bytes) -> bytes:
    return b"%s%s\n%s\n%s" % (_SIGNED, topic.encode(), instance.encode(), payload)


def _derived(seed: str, info: bytes) -> bytes:
    return HKDF(SHA256(), _OCTETS, salt=None, info=info).derive(seed.strip().encode())


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def _encode(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    octets = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if _encode(octets) != text:
        raise ValueError("this is not base64url")
    return octets
