"""Keys of every sending service for tests without a bus."""

from __future__ import annotations

from pathlib import Path

from estcore.messages.envelope import Part, encode
from estcore.messages.signatures import MessageKey, Senders
from estdev.nats import SENDING, new_user_seed, senders_document

SEEDS = {service: new_user_seed() for service in SENDING}
SENDERS = Senders.read(senders_document(SEEDS, issuers=("issuing",), upstreams=("corporate",)))


def message_key(service: str, instance: str = "test") -> MessageKey:
    """Return the key with which a service signs."""
    return MessageKey(SEEDS[service], instance)


def store_state(folder: Path, topic: str, message: Part, service: str = "ca-signer") -> None:
    """Write a message of ``PKI_STATE`` as a front end keeps it on disk."""
    payload = encode(message)
    signature = message_key(service).sign(topic, payload)
    (folder / topic).write_bytes(signature.encode() + b"\n" + payload)
