"""Which rotation a certificate belongs to, as events said, perhaps before it reached the agent."""

from __future__ import annotations

from estcore.messages.events import RotationEvent

_REMEMBERED = 256


class RotationNames:
    """Rotation ids by the fingerprint of the new certificate, the latest events only."""

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}
        self._proven: set[str] = set()

    def remember(self, event: RotationEvent) -> None:
        """Take in an event; one without a new certificate says nothing."""
        if event.new is None:
            return
        fingerprint = event.new.fingerprint_sha256
        self._ids[fingerprint] = event.rotation_id
        if event.step == "activated":
            self._proven.add(fingerprint)
        while len(self._ids) > _REMEMBERED:
            oldest = next(iter(self._ids))
            del self._ids[oldest]
            self._proven.discard(oldest)

    def rotation_id(self, fingerprint: str) -> str | None:
        """Return the rotation of a certificate, if an event named it."""
        return self._ids.get(fingerprint)

    def is_proven(self, fingerprint: str) -> bool:
        """Return whether an event said that the certificate was proven in use."""
        return fingerprint in self._proven
