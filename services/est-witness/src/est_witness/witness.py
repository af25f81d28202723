"""The decision of a witness (C2SP tlog-witness): cosign what continues what was seen.

1. The log is one of the settings, and its signature is good.
2. The request begins at the size that was seen last.
3. The proof shows that the new tree begins with the one seen.
4. Size and root are stored; then they are cosigned.

A request for the same size gets a cosignature of now, if its root is the same one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from est_witness import metrics
from est_witness.seen import Seen, SeenFiles
from estcore.clock import Clock
from estcore.errors import (
    AuditChainBroken,
    Conflict,
    MalformedRequest,
    NotAuthenticated,
    NotAuthorized,
)
from estcore.runtime.logs import fields
from estcore.tlog.checkpoint import VerifierKey
from estcore.tlog.cosignature import WitnessRequest, cosign
from estcore.tlog.tree import verify_consistency

log = logging.getLogger(__name__)


class OtherSize(Conflict):
    """The request does not begin at the size that was seen last."""

    default_code = "witness.size"

    def __init__(self, size: int) -> None:
        super().__init__(f"the witness has seen size {size}")
        self.size = size


class ForkFound(NotAuthorized):
    """Two trees of a log contradict each other: the log was changed."""

    default_code = "witness.fork"


class Witness:
    """Cosigns the checkpoints of known logs; call it for one request at a time."""

    def __init__(
        self,
        name: str,
        private_key: Ed25519PrivateKey,
        logs: Mapping[str, VerifierKey],
        files: SeenFiles,
        clock: Clock,
    ) -> None:
        """Read what was seen of each log.

        Raises:
            ConfigurationError: a file is damaged.
        """
        self._name, self._key, self._logs = name, private_key, logs
        self._files, self._clock = files, clock
        self._seen = {origin: files.load(origin) for origin in logs}
        for origin, seen in self._seen.items():
            metrics.SIZE.labels(origin).set(seen.size)

    def answer(self, body: bytes) -> str:
        """Return the signature line for a request.

        Raises:
            MalformedRequest: not a request, or of a log that is not known here.
            NotAuthenticated: not signed by the log.
            OtherSize: it does not begin where this witness is.
            ForkFound: it contradicts what was seen.
            OSError: what was seen cannot be stored.
        """
        request = WitnessRequest.parse(body)
        point = request.signed.checkpoint
        key = self._logs.get(point.origin)
        if key is None:
            raise MalformedRequest("this log is not witnessed here", code="witness.log")
        try:
            request.signed.verify(key)
        except AuditChainBroken as exc:
            raise NotAuthenticated(exc.reason, code="witness.log_signature") from exc
        seen = self._seen[point.origin]
        if request.old > point.size:
            raise MalformedRequest("old is larger than the checkpoint", code="witness.malformed")
        if request.old != seen.size:
            raise OtherSize(seen.size)
        self._check(request, seen)
        new = Seen(point.size, point.root)
        if new != seen:
            self._files.store(point.origin, new)
            self._seen[point.origin] = new
        metrics.SIZE.labels(point.origin).set(point.size)
        return cosign(point, self._name, self._key, int(self._clock.now().timestamp()))

    def _check(self, request: WitnessRequest, seen: Seen) -> None:
        """Check that the new tree begins with the one seen.

        Raises:
            OtherSize: the same size with a different root, as the protocol answers it.
            ForkFound: the proof does not hold.
        """
        point = request.signed.checkpoint
        if seen.size == 0:
            if request.proof:
                raise ForkFound("a proof from an empty tree is empty")
            return
        try:
            verify_consistency(seen.size, point.size, request.proof, seen.root, point.root)
        except AuditChainBroken as exc:
            metrics.FORKS.labels(point.origin).inc()
            log.error(
                "the log contradicts what was seen of it",
                extra=fields(
                    origin=point.origin,
                    seen_size=seen.size,
                    seen_root=seen.root.hex(),
                    size=point.size,
                    root=point.root.hex(),
                ),
            )
            if point.size == seen.size:
                raise OtherSize(seen.size) from exc
            raise ForkFound(exc.reason) from exc
