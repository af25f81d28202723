"""How many OCSP answers a signer signs: issuing comes first.

OCSP questions are of anyone, and each costs a row and a signature of the process that issues. A
token bucket bounds them; while requests for certificates wait, an answer costs ten times as much.
"""

from __future__ import annotations

from collections.abc import Callable

from estcore.clock import monotonic_s

_COST_WHILE_ISSUING = 10


class OCSPLimit:
    """Admits questions of one process: ``per_s``, and twice as many at once."""

    def __init__(
        self,
        per_s: float,
        issuing_waits: Callable[[], bool],
        now_s: Callable[[], float] = monotonic_s,
    ) -> None:
        self._per_s = per_s
        self._now_s = now_s
        self._most = max(_COST_WHILE_ISSUING, 2 * per_s)
        self._issuing_waits = issuing_waits
        self._level = self._most
        self._at = now_s()

    def admits(self) -> bool:
        """Return whether one more question is answered; otherwise its answer is tryLater."""
        now = self._now_s()
        self._level = min(self._most, self._level + (now - self._at) * self._per_s)
        self._at = now
        cost = _COST_WHILE_ISSUING if self._issuing_waits() else 1
        if self._level < cost:
            return False
        self._level -= cost
        return True
