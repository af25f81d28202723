"""Revocation lists in parts: which part a certificate is in follows from its serial number.

The last octets of a serial number are random, so parts are of one size. How many there are is said
in the name of each, so that their number may change: a certificate keeps the part it names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

COUNTS = (2, 4, 8, 16, 32, 64, 128, 256)
PLACEHOLDER, ISSUER_PLACEHOLDER = "{partition}", "{issuer}"
_NAME = re.compile(r"(0|[1-9][0-9]{0,2})-(0|[1-9][0-9]{0,2})")


@dataclass(frozen=True, order=True)
class Partition:
    """Part ``index`` of ``count``."""

    count: int
    index: int

    @property
    def name(self) -> str:
        """As in topics and URLs: ``16-3``."""
        return f"{self.count}-{self.index}"

    def holds(self, serial_number: int) -> bool:
        """Return whether a certificate is in this part."""
        return serial_number % self.count == self.index


def partition_of(serial_number: int, count: int) -> Partition:
    """Return the part of ``count`` that a certificate is in."""
    return Partition(count, serial_number % count)


def read_partition(name: str) -> Partition:
    """Return the partition of that name.

    Raises:
        ValueError: it is none.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not a partition")
    partition = Partition(int(match[1]), int(match[2]))
    if partition.count not in COUNTS or partition.index >= partition.count:
        raise ValueError(f"{name!r} is not a partition")
    return partition


def all_of(count: int) -> list[Partition]:
    """Return the parts of ``count``."""
    return [Partition(count, index) for index in range(count)]


def filled(url: str, issuer_id: str, partition: Partition | None = None) -> str:
    """Return a URL template of a profile with the issuer and the partition put in."""
    url = url.replace(ISSUER_PLACEHOLDER, issuer_id)
    return url if partition is None else url.replace(PLACEHOLDER, partition.name)
