"""Proofs that are good for one request, as this process has seen them.

The signer's ledger decides across all front ends. Here they are remembered so that a request that
the front end itself refuses, or that reads and enrolls nothing, spends its proof as well.
"""

from __future__ import annotations

from collections import OrderedDict

from estcore.clock import monotonic_s
from estcore.errors import NotAuthenticated
from estcore.messages.enrollment import Claim

_CAPACITY = 100_000
"""Only right credentials get this far; the oldest entry makes room."""


class SpentProofs:
    """Remembers each proof for as long as its signature or nonce would be accepted."""

    def __init__(self, *, keep_s: float, capacity: int = _CAPACITY) -> None:
        self._keep_s = keep_s
        self._capacity = capacity
        self._until: OrderedDict[tuple[str, str], float] = OrderedDict()

    def spend(self, claim: Claim) -> None:
        """Remember a proof.

        Raises:
            NotAuthenticated: it was used before.
        """
        now = monotonic_s()
        while self._until and next(iter(self._until.values())) < now:
            self._until.popitem(last=False)
        key = (claim.kind, claim.id)
        if key in self._until:
            raise NotAuthenticated(f"the {claim.kind} proof was used before", code="auth.replayed")
        self._until[key] = now + self._keep_s
        if len(self._until) > self._capacity:
            self._until.popitem(last=False)
