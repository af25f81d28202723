"""A bounded table of what is remembered about clients, which no flood of addresses can empty.

Entries belong to a network (IPv4 /24, IPv6 /48). When the table is full, the oldest entry of the
network with the most entries makes room: who fills the table loses entries of its own.
"""

from __future__ import annotations

import functools
import ipaddress
from collections import defaultdict
from typing import Generic, TypeVar

V = TypeVar("V")

_NETWORK_BITS = {4: 24, 6: 48}


@functools.lru_cache(10_000)
def network_of(source: str) -> str:
    """Return the network of a source (``estcore.runtime.sockets.source_of``)."""
    try:
        network = ipaddress.ip_network(source, strict=False)
    except ValueError:
        return source
    bits = min(_NETWORK_BITS[network.version], network.prefixlen)
    return str(network.supernet(new_prefix=bits))


class FairTable(Generic[V]):
    """Values by name, ``capacity`` of them."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: dict[str, V] = {}
        self._network: dict[str, str] = {}
        self._names: defaultdict[str, dict[str, None]] = defaultdict(dict)
        """The names of each network, oldest first."""
        self._by_size: defaultdict[int, dict[str, None]] = defaultdict(dict)
        """Networks by how many names they have, so that the largest is found at once."""
        self._largest = 0

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._values)

    def get(self, name: str) -> V | None:
        """Return the value of a name; None without."""
        return self._values.get(name)

    def put(self, name: str, network: str, value: V) -> None:
        """Set the value of a name, which becomes the newest of its network."""
        self.pop(name)
        if len(self._values) >= self._capacity:
            self._evict()
        self._values[name] = value
        self._network[name] = network
        self._names[network][name] = None
        self._resized(network, len(self._names[network]) - 1)

    def pop(self, name: str) -> V | None:
        """Remove a name; returns its value, or None without."""
        network = self._network.pop(name, None)
        if network is None:
            return None
        names = self._names[network]
        del names[name]
        self._resized(network, len(names) + 1)
        if not names:
            del self._names[network]
        return self._values.pop(name)

    def _evict(self) -> None:
        network = next(iter(self._by_size[self._largest]))
        self.pop(next(iter(self._names[network])))

    def _resized(self, network: str, before: int) -> None:
        size = len(self._names[network])
        self._by_size[before].pop(network, None)
        if not self._by_size[before]:
            del self._by_size[before]
        if size:
            self._by_size[size][network] = None
        self._largest = max(self._largest, size)
        while self._largest and self._largest not in self._by_size:
            self._largest -= 1
