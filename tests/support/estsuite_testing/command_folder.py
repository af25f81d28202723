"""A folder with every command of the suite, each quick to start, for shells and subprocesses.

What lies there is a small program that has the command forked (``forked_commands``) with its own
arguments, environment, folder and standard streams, hands signals on and ends as it ends.
"""

from __future__ import annotations

import atexit
import json
import shutil
import socket
import sys
import tempfile
import threading
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from estsuite_testing.forked_commands import request_fork

_MAX_REQUEST = 256 * 1024
_PROGRAM = """\
#!{python} -IS
import json, os, signal, socket, sys
requests = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
requests.connect({path!r})
reader, status = os.pipe()
request = json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], dict(os.environ), os.getcwd()])
socket.send_fds(requests, [request.encode()], [1, 2, status, 0])
os.close(status)
with os.fdopen(reader) as lines:
    pid = int(lines.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    code = int(lines.readline() or -signal.SIGKILL)
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@cache
def command_folder() -> Path:
    """Return the folder, made once in each process that asks for it."""
    folder = Path(tempfile.mkdtemp(prefix="estsuite-commands-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(folder / "requests"))
    listener.listen()
    program = _PROGRAM.format(python=sys.executable, path=str(folder / "requests"))
    for script in entry_points(group="console_scripts"):
        if script.dist is not None and script.dist.name.startswith("estsuite-"):
            file = folder / script.name
            file.write_text(program)
            file.chmod(0o700)
    threading.Thread(target=_hand_on, args=(listener,), daemon=True).start()
    return folder


def _hand_on(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            request, descriptors, _, _ = socket.recv_fds(connection, _MAX_REQUEST, 4)
            command, arguments, environment, folder = json.loads(request)
            request_fork(command, arguments, environment, folder, descriptors)
            for descriptor in descriptors:
                socket.close(descriptor)
