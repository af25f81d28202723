"""Ports of suites that start at the same time on one host."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from estcore.errors import ConfigurationError
from estdev import ports
from estdev.ports import free_port

pytestmark = pytest.mark.integration

MANY = """
from estdev.ports import free_port
print(*(free_port() for _ in range(150)), flush=True)
input()
"""


def test_processes_that_choose_at_the_same_time_never_get_the_same_port() -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", MANY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    try:
        with ThreadPoolExecutor(4) as pool:
            lines = list(pool.map(lambda process: process.stdout.readline(), running))
        chosen = [int(port) for line in lines for port in line.split()]
        assert len(chosen) == len(set(chosen)) == 600
        assert free_port() not in chosen
    finally:
        for process in running:
            process.communicate("\n")


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])  # noqa: S104
def test_a_port_that_a_server_listens_on_is_not_chosen(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(ports, "RANGE", range(port, port + 1))
        with pytest.raises(ConfigurationError, match="is taken"):
            free_port()
    assert free_port() == port


def test_a_chosen_port_is_outside_those_of_outgoing_connections() -> None:
    first, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert free_port() < int(first)


def test_a_server_takes_its_port_again_after_connections_closed() -> None:
    port = free_port()
    for _ in range(3):
        with (
            socket.create_server(("127.0.0.1", port)) as server,
            socket.create_connection(("127.0.0.1", port)),
        ):
            server.accept()[0].close()
