"""Memory of processes that hold keys: no core file, not traceable, and TLS to NATS not lost."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from estcore.runtime.nats_client import Client, nats

WAITING = """
import sys, time
from estcore.runtime.console import console_script
@console_script
def main():
    print("up", flush=True)
    time.sleep(60)
main()
"""


# Root may read everything: process and reader are then started without capabilities.
WITHOUT_CAPABILITIES = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
PLAIN = WITHOUT_CAPABILITIES if os.geteuid() == 0 else []


def started(folder: Path, source: str) -> subprocess.Popen[bytes]:
    """Start a process that would leave a core file in ``folder`` if it were left as it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    del soft
    process = subprocess.Popen(
        [*PLAIN, sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        cwd=folder,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (hard, hard)),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.stdout.close()
    return process


def test_a_command_leaves_no_core_file_and_cannot_be_traced(tmp_path: Path) -> None:
    process = started(tmp_path, WAITING)
    try:
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        (core,) = [line.split() for line in limits.splitlines() if line.startswith("Max core")]
        assert core[4:6] == ["0", "0"]
        assert not readable_by_its_user(process.pid)
    finally:
        process.send_signal(signal.SIGABRT)
        assert process.wait(10) == -signal.SIGABRT
    assert list(tmp_path.iterdir()) == []


def readable_by_its_user(pid: int) -> bool:
    """Return whether another process of the same user may read the memory of this one."""
    reader = [*PLAIN, "cat", f"/proc/{pid}/environ"]
    return subprocess.run(reader, capture_output=True, check=False).returncode == 0


def test_without_the_entry_of_a_command_the_memory_is_readable(tmp_path: Path) -> None:
    """The check above sees what it looks for."""
    process = started(tmp_path, "print('up', flush=True); import time; time.sleep(60)")
    try:
        assert readable_by_its_user(process.pid)
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.parametrize("limit", [0, 65_536])
def test_a_process_with_a_limit_goes_on_without_locked_memory(limit: int) -> None:
    source = (
        "from estcore.runtime.process import _may_lock, lock_memory\n"
        "import threading\n"
        "locked = lock_memory()\n"
        "many = [bytearray(1 << 20) for _ in range(8)]\n"
        "threading.Thread(target=print).start()\n"
        "status = open('/proc/self/status').read()\n"
        "size = int(status.split('VmLck:')[1].split()[0])\n"
        "assert (size > 0) == locked == _may_lock(), (size, locked)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit)),
        check=False,
    )
    assert done.returncode == 0


async def test_tls_to_nats_is_not_given_up_for_a_server_that_does_not_ask_for_it() -> None:
    """The greeting is not encrypted: what changes it could switch TLS off."""
    received = bytearray()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "x", "version": "2.12.0", "max_payload": 1024, "tls_available": True}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        received.extend(await reader.read(1000))
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    failures: list[BaseException] = []

    async def failed(error: BaseException) -> None:
        failures.append(error)

    client = Client()
    started_at = time.monotonic()
    with pytest.raises(nats.errors.Error):
        await client.connect(
            f"tls://127.0.0.1:{port}",
            tls=ssl.create_default_context(),
            error_cb=failed,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=2,
            user="u",
            password="hidden",
        )
    assert time.monotonic() - started_at < 10
    await client.close()
    server.close()
    assert any(isinstance(f, nats.errors.SecureConnWantedError) for f in failures)
    assert bytes(received) == b""


HASHING = """
import re, sys
from argon2 import PasswordHasher
from estcore.runtime.process import return_large_blocks
def megabytes():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
if sys.argv[1] == "returned":
    assert return_large_blocks()
hasher = PasswordHasher(memory_cost=19456, time_cost=1, parallelism=1)
hasher.hash("warm up")
before = megabytes()
for n in range(3):
    hasher.hash(str(n))
print(megabytes() - before, before)
"""


def test_the_memory_of_a_password_hash_is_returned() -> None:
    def held(how: str) -> float:
        out = subprocess.run(
            [sys.executable, "-c", HASHING, how], capture_output=True, check=True, text=True
        ).stdout
        return sum(map(float, out.split()))

    assert held("kept") - held("returned") > 15
