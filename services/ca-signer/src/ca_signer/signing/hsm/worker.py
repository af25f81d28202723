"""The worker process of a token: ``python -m ca_signer.signing.hsm.worker``, its pipe is stdin.

One thread calls PKCS#11: python-pkcs11 initialises modules without locking, and two threads
crashed one. What hangs in here, or crashes, is killed and started anew by
``ca_signer.signing.hsm.worker_process``; nothing in here tries again.

Ends when the pipe is closed, also while a call hangs, so that it never outlives the signer.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from collections.abc import Callable

from ca_signer.signing.hsm.protocol import (
    Failed,
    Find,
    Frame,
    FrameReader,
    Generate,
    Kind,
    Open,
    ProtocolBroken,
    decode_sign,
    encode_keys,
)
from ca_signer.signing.hsm.session import TokenFailed, TokenSession
from estcore.runtime.process import forbid_dumps, lock_memory

_EXIT_PROTOCOL = 3


class Server:
    """Answers requests, one after the other."""

    def __init__(self, session: Callable[[Open], TokenSession] = TokenSession) -> None:
        self._open = session
        self._session: TokenSession | None = None

    def answer(self, request: Frame) -> Frame:
        """Return the answer to a request.

        Raises:
            ProtocolBroken: not a request, or not now.
        """
        try:
            kind, body = self._answer(request)
        except TokenFailed as exc:
            kind, body = Kind.FAILED, Failed(exc.phase, exc.error, exc.text).encode()
        return Frame(kind, request.number, body)

    def _answer(self, request: Frame) -> tuple[Kind, bytes]:
        session = self._session
        if request.kind is Kind.OPEN and session is None:
            self._session = self._open(Open.decode(request.body))
            return Kind.OPENED, b""
        if session is None:
            raise ProtocolBroken("not open")
        match request.kind:
            case Kind.SIGN:
                return Kind.SIGNED, session.sign(*decode_sign(request.body))
            case Kind.FIND:
                return Kind.KEY, session.find(Find.decode(request.body)).encode()
            case Kind.LIST:
                return Kind.KEYS, encode_keys(session.keys())
            case Kind.GENERATE:
                return Kind.KEY, session.generate(Generate.decode(request.body)).encode()
            case _:
                raise ProtocolBroken("not a request")


def serve(pipe: socket.socket, server: Server) -> None:
    """Answer until the pipe is closed.

    Raises:
        ProtocolBroken: the signer wrote something else.
    """
    reader = FrameReader()
    while data := pipe.recv(1 << 16):
        for request in reader.feed(data):
            pipe.sendall(server.answer(request).encode())


def end_with(pipe: socket.socket) -> None:
    """End the process when the signer's end of the pipe is closed, even while a call hangs."""

    def watch() -> None:
        waiting = select.poll()
        waiting.register(pipe.fileno(), 0)  # only that it hung up
        waiting.poll()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def main(server: Server | None = None) -> int:
    """Serve the pipe on stdin; returns the exit code."""
    # A core file or the swap would hold the PIN.
    forbid_dumps()
    lock_memory()
    pipe = socket.socket(fileno=os.dup(0))
    # Modules that read or print must not come near the pipe.
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    end_with(pipe)
    try:
        serve(pipe, server or Server())
    except (ProtocolBroken, OSError):
        return _EXIT_PROTOCOL
    return 0


if __name__ == "__main__":
    sys.exit(main())
