"""Rotation events as renewal publishes them, for tests of their readers."""

from __future__ import annotations

import datetime as dt
from hashlib import sha256

from cryptography import x509

from estcore import ids
from estcore.messages import topics
from estcore.messages.envelope import encode
from estcore.messages.events import CertificateRef, RotationEvent
from estcore.pki.profile import Priority
from estcore.runtime.bus import Bus, Outgoing


def reference(der: bytes) -> CertificateRef:
    certificate = x509.load_der_x509_certificate(der)
    return CertificateRef(
        serial=ids.serial_hex(certificate.serial_number),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        spki_sha256="00" * 32,
        fingerprint_sha256=sha256(der).hexdigest(),
    )


def requested_event(old: bytes, slot_id: str, *, fence: int = 1) -> RotationEvent:
    """What renewal sends to have a certificate renewed by ca-signer."""
    rotation = ids.rotation_id(slot_id, 2)
    return RotationEvent.model_validate(
        {
            "id": ids.uuid7(), "source": "renewal", "time": dt.datetime.now(dt.UTC),
            "correlation_id": rotation, "step": "requested", "tenant": "test",
            "service": "load", "slot_id": slot_id, "rotation_id": rotation, "generation": 2,
            "profile": "service-mtls", "priority": Priority.NORMAL, "label": "services",
            "mode": "managed", "issuer_id": "issuing", "fence": fence, "old": reference(old),
        }
    )  # fmt: skip


async def publish_rotation(renewal: Bus, old: bytes, new: bytes, step: str = "deprecated") -> str:
    """What renewal publishes, twice and past JetStream's own memory of ids."""
    event = RotationEvent.model_validate(
        {
            "id": ids.uuid7(), "source": "renewal", "time": dt.datetime.now(dt.UTC),
            "correlation_id": ids.uuid7(), "step": step, "tenant": "test", "service": "load",
            "slot_id": ids.uuid7(), "rotation_id": ids.uuid7(), "generation": 2,
            "profile": "service-mtls", "priority": Priority.NORMAL, "label": "services",
            "mode": "agent", "issuer_id": "issuing", "fence": 1,
            "old": reference(old), "new": reference(new), "proof": None,
        }
    )  # fmt: skip
    topic = topics.rotation_topic(step, "test", "load")
    for _ in range(2):
        await renewal.publish_confirmed([Outgoing(topic, encode(event), ids.uuid7())])
    return event.rotation_id
