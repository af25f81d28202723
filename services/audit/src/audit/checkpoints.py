"""Signed checkpoints: every so many records or seconds, and when the writer stops."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit import metrics, store
from audit.chain import Chain
from audit.settings import CheckpointSettings
from estcore.clock import Clock, monotonic_s
from estcore.runtime.database import Connection
from estcore.tlog.checkpoint import Checkpoint, sign


class Sealer:
    """Signs the root of the tree. A tree that has not grown is not signed again."""

    def __init__(
        self, settings: CheckpointSettings, private_key: Ed25519PrivateKey, clock: Clock
    ) -> None:
        self._settings, self._key, self._clock = settings, private_key, clock
        self._size = 0
        self._signed = monotonic_s()

    @property
    def size(self) -> int:
        """Size of the newest checkpoint."""
        return self._size

    async def load(self, connection: Connection) -> None:
        """Learn how far the log is sealed."""
        self._size = await store.last_checkpoint(connection)
        self._signed = monotonic_s()
        metrics.CHECKPOINT_SIZE.set(self._size)

    def due(self, size: int) -> bool:
        """Return whether a log of this size needs a checkpoint now."""
        if size == self._size:
            return False
        enough = size - self._size >= self._settings.every_records
        return enough or monotonic_s() - self._signed >= self._settings.interval_s

    async def seal(self, connection: Connection, chain: Chain) -> None:
        """Sign and store a checkpoint of the log as it is, unless there is one."""
        size = chain.size
        if size == self._size:
            return
        point = Checkpoint(self._settings.origin, size, chain.root)
        note = sign(point, self._settings.origin, self._key)
        await store.add_checkpoint(connection, size, point.root, note, self._clock.now())
        self._size, self._signed = size, monotonic_s()
        metrics.CHECKPOINTS.inc()
        metrics.CHECKPOINT_SIZE.set(size)
