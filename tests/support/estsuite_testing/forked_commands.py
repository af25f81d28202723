"""Commands of the suite forked from one process that has imported their modules.

A command spends most of a second of CPU on imports, and the end-to-end tests start hundreds.
What runs is the command's own entry point in a process, session and environment of its own. That
each command starts when it is executed is tested in ``integration/estcore/test_console.py``,
``integration/deploy/test_suite_without_containers.py`` and ``e2e/test_operations.py``.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import IO, Any, NoReturn

_MAX_REQUEST = 256 * 1024
_POLL_S = 0.03
_LAZY = (
    *("ca_signer.cli.service", "ca_signer.main", "est_frontend.app", "estclient.operators.cli"),
    *("sqlalchemy", "alembic.command"),
)
_DISTRIBUTIONS = ("estsuite-",)


class ForkedProcess:
    """One command in a process of its own; as much of ``asyncio.subprocess.Process`` as is used."""

    def __init__(
        self,
        command: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        stdout: IO[bytes] | int,
        stderr: IO[bytes] | int,
    ) -> None:
        self._outputs: list[int | None] = []
        handed, opened = [], []
        for output in (stdout, stderr):
            if output == asyncio.subprocess.PIPE:
                reader, writer = os.pipe()
                self._outputs.append(reader)
                handed.append(writer)
                opened.append(writer)
            else:
                self._outputs.append(None)
                handed.append(output if isinstance(output, int) else output.fileno())
        self._status, status = os.pipe()
        try:
            request_fork(command, arguments, environment, None, [*handed, status])
        finally:
            for descriptor in (*opened, status):
                os.close(descriptor)
        self._returncode: int | None = None
        self.pid = int(self._line())
        os.set_blocking(self._status, False)

    @property
    def returncode(self) -> int | None:
        """The exit code, minus the number of the signal that ended it, or None while it runs."""
        if self._returncode is None and self._status >= 0:
            try:
                line = self._line()
            except BlockingIOError:
                return None
            os.close(self._status)
            self._status = -1
            self._returncode = int(line or -signal.SIGKILL)  # the server itself was killed
        return self._returncode

    async def wait(self) -> int:
        """Return the exit code when the process has ended."""
        while (code := self.returncode) is None:
            await asyncio.sleep(_POLL_S)
        return code

    async def communicate(self) -> tuple[bytes, bytes]:
        """Return standard output and error when the process has ended."""
        output, error = await asyncio.gather(
            *(asyncio.to_thread(_read_all, descriptor) for descriptor in self._outputs)
        )
        await self.wait()
        return output, error

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing where the process has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            octet = os.read(self._status, 1)
            if not octet:
                break
            line += octet
        return line.strip()


def _read_all(descriptor: int | None) -> bytes:
    if descriptor is None:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def request_fork(
    command: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    folder: str | None,
    descriptors: list[int],
) -> None:
    """Have a command started, in ``folder`` or where the tests run.

    ``descriptors`` are its standard output and error, where its process id and then its exit code
    are written, a line each, and its standard input, if any.
    """
    request = json.dumps([command, list(arguments), dict(environment), folder]).encode()
    _server().send(request, descriptors)


class _Server:
    """The client's side of the forking process."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "estsuite_testing.forked_commands", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        theirs.close()
        atexit.register(self.close)

    def send(self, request: bytes, descriptors: list[int]) -> None:
        with self._lock:
            socket.send_fds(self._socket, [request], descriptors)

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


_started: list[_Server] = []
_starting = threading.Lock()


def _server() -> _Server:
    with _starting:
        if not _started:
            _started.append(_Server())
        return _started[0]


def _entry_points() -> dict[str, Any]:
    scripts = {}
    for script in entry_points(group="console_scripts"):
        distribution = script.dist.name if script.dist is not None else ""
        if distribution.startswith(_DISTRIBUTIONS):
            scripts[script.name] = script.load()
    return scripts


def _serve(requests: socket.socket) -> None:
    scripts = _entry_points()
    for module in _LAZY:
        importlib.import_module(module)
    # What is here now is the same in every command: no collector of theirs needs to visit it, and
    # its memory stays shared.
    gc.collect()
    gc.freeze()
    woken, waker = os.pipe()
    for descriptor in (woken, waker):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    statuses: dict[int, int] = {}
    while True:
        readable, _, _ = select.select([requests.fileno(), woken], [], [])
        if woken in readable:
            os.read(woken, 4096)
            _reap(statuses)
        if requests.fileno() in readable:
            request, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST, 4)
            if not request:
                return
            stdout, stderr, status, *stdin = descriptors
            pid = os.fork()
            if pid == 0:
                for descriptor in (requests.fileno(), woken, waker, status, *statuses.values()):
                    os.close(descriptor)
                _run(scripts, request, [*stdin, stdout, stderr] if stdin else [0, stdout, stderr])
            for descriptor in (stdout, stderr, *stdin):
                os.close(descriptor)
            os.write(status, b"%d\n" % pid)
            statuses[pid] = status


def _reap(statuses: dict[int, int]) -> None:
    while statuses:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        descriptor = statuses.pop(pid)
        os.write(descriptor, b"%d\n" % os.waitstatus_to_exitcode(status))
        os.close(descriptor)


def _run(scripts: Mapping[str, Any], request: bytes, streams: list[int]) -> NoReturn:
    """Become the command: what ``exec`` of its script would be, without the imports."""
    command, arguments, environment, folder = json.loads(request)
    if folder is not None:
        os.chdir(folder)
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in enumerate(streams):
        if descriptor != number:
            os.dup2(descriptor, number)
            os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    random.seed()
    sys.argv = [os.path.join(os.path.dirname(sys.executable), command), *arguments]  # noqa: PTH118, PTH120 - one string
    code: Any = 1
    try:
        code = scripts[command]()
    except SystemExit as exc:
        code = exc.code
    except BaseException:  # noqa: BLE001 - Bulkhead: a process of its own ends here.
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as served:
        _serve(served)
