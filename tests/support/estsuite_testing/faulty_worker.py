"""A token worker that misbehaves: ``faulty_worker.py FOLDER`` reads ``FOLDER/mode`` at every call.

``garbage`` flips a bit of the signature, ``slow:0.2`` takes so long, ``hang`` never answers,
``refuse`` says CKR_DEVICE_ERROR, ``babble`` writes into the pipe what is no answer, ``print``
writes to standard output as modules of vendors do, ``hang-open`` hangs while it logs in,
``login:PinLocked`` answers the login with CKR_PIN_LOCKED, ``end-open`` ends after finding a key.
Everything else is the real worker with the real module. Every login is a line in
``FOLDER/logins``.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from typing_extensions import override

from ca_signer.signing.hsm import worker
from ca_signer.signing.hsm.protocol import Frame, Kind, Mechanism, Open
from ca_signer.signing.hsm.session import TokenFailed, TokenSession

FOLDER = Path(sys.argv[1])


def mode() -> str:
    path = FOLDER / "mode"
    return path.read_text() if path.exists() else ""


class FaultySession(TokenSession):
    def __init__(self, request: Open) -> None:
        if mode() == "hang-open":
            time.sleep(3600)
        name, _, error = mode().partition(":")
        if name == "login":
            raise TokenFailed("login", error)
        with (FOLDER / "logins").open("a") as file:
            file.write("login\n")
        super().__init__(request)

    @override
    def sign(self, key: int, mechanism: Mechanism, data: bytes) -> bytes:
        name, _, number = mode().partition(":")
        if name == "slow":
            time.sleep(float(number))
        if name == "hang":
            time.sleep(3600)
        if name == "refuse":
            raise TokenFailed("sign", "DeviceError")
        if name == "print":
            print("vendor module 1.0: signing", flush=True)
        signature = super().sign(key, mechanism, data)
        return signature[:-1] + bytes([signature[-1] ^ 1]) if name == "garbage" else signature


class FaultyServer(worker.Server):
    @override
    def answer(self, request: Frame) -> Frame:
        answer = super().answer(request)
        if mode() == "end-open" and request.kind is Kind.FIND:
            threading.Timer(0, lambda: os._exit(1)).start()
        if mode() == "babble" and request.kind is Kind.SIGN:
            return Frame(Kind.KEYS, request.number + 7, b"{}")
        return answer


if __name__ == "__main__":
    sys.exit(worker.main(FaultyServer(FaultySession)))
