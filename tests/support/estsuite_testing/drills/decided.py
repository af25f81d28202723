"""Choices that are made already: the faults of ``chaos`` ask for a random number generator."""

from __future__ import annotations

import random
from collections.abc import MutableSequence, Sequence
from typing import Any, TypeVar

from typing_extensions import override

_T = TypeVar("_T")


class Decided(random.Random):
    """Return the named values wherever they are offered, otherwise the first one.

    ``seconds`` is how long a fault lasts. ``likely``: a fault does the rarer of its two forms,
    such as all processes of a service in place of one.
    """

    def __init__(self, *values: object, seconds: float = 4.0, likely: bool = False) -> None:
        super().__init__(0)
        self._values, self._seconds, self._likely = values, seconds, likely

    @override
    def random(self) -> float:
        return 0.0 if self._likely else 0.999

    @override
    def uniform(self, a: float, b: float) -> float:
        return self._seconds

    @override
    def randint(self, a: int, b: int) -> int:
        return b

    @override
    def choice(self, seq: Any) -> Any:
        return self._preferred(seq)[0]

    @override
    def sample(self, population: Any, k: int, *, counts: Any = None) -> Any:
        return self._preferred(population)[:k]

    @override
    def shuffle(self, x: MutableSequence[Any]) -> None:
        """Leave the order as it is."""

    def _preferred(self, offered: Sequence[_T]) -> list[_T]:
        named = [item for value in self._values for item in offered if item == value]
        return [*named, *(item for item in offered if item not in named)]
