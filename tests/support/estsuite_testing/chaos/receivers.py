"""Receivers of audit records that break in the ways receivers do, and remember what they took."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from typing_extensions import override

from estdev.ports import free_port
from estsuite_testing.http_receiver import TOKEN, HTTPReceiver
from estsuite_testing.siem import SIEM

UNREACHABLE = ("down", "slow", "resetting", "certificate expired")
REFUSING = ("429", "500", "503", "400", "partial", "busy")
_SLOW_S = (0.5, 4.0)
"""Around the sinks' ``timeout_s``: some requests are answered in time, some taken and not."""
_TIMEOUT_S = 2.0
_PART = 3
"""Of so many records one is refused by a receiver that takes a part."""


class Receiver(HTTPReceiver):
    """One receiver; ``mode`` is what is wrong with it, empty if nothing is."""

    def __init__(self, kind: str, certificates: SIEM, chosen: random.Random) -> None:
        super().__init__(certificates)
        self.kind, self.mode, self.port = kind, "", free_port()
        self.secret = ""
        self.taken: dict[str, str] = {}
        """SHA-256 of the content by record id, in the order of the first arrival."""
        self.turned_away: set[str] = set()
        """Records that it refused alone, so it had later ones before them."""
        self.faulty: list[str] = []
        """What must not be: changed duplicates, secrets."""
        self._chosen = chosen

    def sink(self, token: Path) -> dict[str, Any]:
        """Return the settings of the sink that delivers here."""
        kind = self.kind.partition("-")[0]
        paths = {"otlp": "/v1/logs", "webhook": "/hook"}
        settings: dict[str, Any] = {
            "name": self.kind,
            "kind": kind,
            "url": self.url(paths.get(kind, "")),
            "ca_file": str(self.certificates.ca_file),
            "timeout_s": _TIMEOUT_S,
            "backoff_max_s": 3,
        }
        if kind in {"splunk", "otlp", "webhook"}:
            settings["token_file"] = str(token)
        if self.kind == "splunk-acknowledged":
            settings |= {"acknowledge": True, "acknowledge_timeout_s": 3}
        return settings

    @asynccontextmanager
    async def broken(self, mode: str) -> AsyncIterator[None]:
        """Break in one way for a while."""
        self.mode = mode
        if mode in {"down", "certificate expired"}:
            await self.stop()
        if mode == "certificate expired":
            self.certificates.issue_server_certificate(expired=True)
            await self.start()
        try:
            yield
        finally:
            self.mode = ""
            if mode == "certificate expired":
                await self.stop()
                self.certificates.issue_server_certificate()
            if mode in {"down", "certificate expired"}:
                await self.start()

    @override
    def note_request(self, request: web.Request, body: bytes) -> None:
        if self.secret and self.secret.encode() in body:
            self.faulty.append(f"{self.kind}: a secret was sent")

    @override
    async def next_fault(self) -> int | None:
        if self.mode == "slow":
            await asyncio.sleep(self._chosen.uniform(*_SLOW_S))
        if self.mode == "resetting" and self._chosen.random() < 0.7:
            return 0
        return int(self.mode) if self.mode in {"429", "500", "503"} else None

    @override
    def refuses(self, key: str) -> bool:
        refused = self.mode == "400" or (self.mode == "partial" and _is_part(key))
        if refused:
            self.turned_away.add(key)
        return refused

    @override
    def is_busy(self, key: str) -> bool:
        busy = self.mode == "busy" and self._chosen.random() < 1 / _PART
        if busy:
            self.turned_away.add(key)
        return busy

    @override
    def _take(self, key: str, document: dict[str, Any]) -> None:
        if key.startswith("checkpoint-"):  # says which replica sent it
            return
        text = json.dumps(document, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        if self.taken.setdefault(key, digest) != digest:
            self.faulty.append(f"{self.kind}: {key} came again with other content")
        self.documents[key] = {}  # Elasticsearch answers 409 for it


def _is_part(key: str) -> bool:
    return hashlib.sha256(key.encode()).digest()[0] % _PART == 0


def make_receivers(folder: Path, seed: int) -> tuple[list[Receiver], Path]:
    """Return a receiver of each kind that is spoken to over HTTPS, and the file of their token."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    kinds = ("splunk", "splunk-acknowledged", "elasticsearch", "otlp", "webhook")
    found = []
    for kind in kinds:
        place = folder / kind
        place.mkdir()
        found.append(Receiver(kind, SIEM(place), random.Random(f"{seed} {kind}")))
    return found, token
