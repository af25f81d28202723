"""Cosignatures of witnesses for the newest checkpoint (C2SP tlog-witness), beside the writer.

A witness is a process of others with a key of its own. It signs only what continues what it has
seen, so a log whose history was changed gets no cosignature any more. It is asked after each
checkpoint that is ``every_s`` younger than the last cosigned one; appending never waits for it.

The proof needs the right edge of the tree that the witness saw, which is kept, and the leaves since
then. Where the witness has seen another size, the edge is computed from all leaves again.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from audit import metrics, store, tiles
from audit.self_records import SelfRecords
from audit.settings import WitnessSettings
from estcore.clock import monotonic_s
from estcore.errors import (
    AuditChainBroken,
    ConfigurationError,
    LedgerUnavailable,
    MalformedRequest,
)
from estcore.runtime.database import Database
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop
from estcore.tlog.checkpoint import SignedCheckpoint, parse_signed
from estcore.tlog.cosignature import (
    CONTENT_TYPE_SIZE,
    CosignerKey,
    WitnessRequest,
    consistency_from,
    verify_cosignature,
    with_cosignatures,
)
from estcore.tlog.tree import Frontier

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_RETRY_S = 5.0
_MAX_ANSWER = 16_384
_CONFLICT, _OK = 409, 200
_LEAVES = 50_000


class WitnessRefuses(Exception):
    """The witness does not sign, for a reason that a repetition does not change."""


@dataclass(frozen=True)
class _Answer:
    status: int
    content_type: str
    text: str


class Witnessing:
    """The job of one witness."""

    def __init__(
        self,
        settings: WitnessSettings,
        *,
        database: Database,
        own: SelfRecords,
        leading: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._key = CosignerKey.parse(settings.vkey)
        self._database, self._own, self._leading = database, own, leading
        self._fault: str | None = None
        self._asked_at: float | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Ask for cosignatures until ``stop``."""
        while not stop.is_set():
            pause = _LOOK_S
            if self._leading() and self._due():
                pause = await self._ask()
            await sleep_or_stop(stop, pause)

    def _due(self) -> bool:
        return self._asked_at is None or monotonic_s() - self._asked_at >= self._settings.every_s

    async def _ask(self) -> float:
        """Ask once; returns the pause before the next look, in seconds."""
        try:
            await self.step()
        except WitnessRefuses as exc:
            self._report("witness.refused", str(exc), severe=True)
            return _RETRY_S * 12
        except (OSError, aiohttp.ClientError, TimeoutError) as exc:
            self._report("witness.unavailable", f"{type(exc).__name__}: {exc}", severe=False)
            return _RETRY_S
        except LedgerUnavailable:
            return _RETRY_S
        if self._fault is not None:
            self._own.note("audit.witness_recovered", witness=self._key.name)
            log.info("witness cosigns again", extra=fields(witness=self._key.name))
        self._fault = None
        self._asked_at = monotonic_s()
        return _LOOK_S

    def _report(self, code: str, reason: str, *, severe: bool) -> None:
        metrics.WITNESS_FAULTS.labels(self._key.name).inc()
        if self._fault == code:
            return
        self._fault = code
        log.log(
            logging.ERROR if severe else logging.WARNING,
            "witness does not cosign",
            extra=fields(witness=self._key.name, code=code, reason=reason),
        )
        self._own.note(
            "audit.witness_fault",
            phase="error",
            severity="critical" if severe else "warning",
            reason=(code, reason[:300]),
            witness=self._key.name,
        )

    async def step(self) -> None:
        """Get a cosignature of the newest checkpoint, if the witness has not seen it.

        Raises:
            WitnessRefuses: it never signs this log as it is.
            OSError, aiohttp.ClientError, TimeoutError: it cannot be reached, or not now.
            LedgerUnavailable: PostgreSQL is unavailable.
        """
        async with self._database.connection() as connection:
            note = await store.newest_note(connection)
            known = await store.witnessed(connection, self._key.name)
        if note is None:
            return
        signed = parse_signed(note)
        if known.size >= signed.checkpoint.size:
            return
        answer = await self._request(signed, known)
        if answer.status == _CONFLICT and answer.content_type == CONTENT_TYPE_SIZE:
            known = await self._edge(_size(answer.text), signed.checkpoint.size)
            answer = await self._request(signed, known)
        if answer.status != _OK:
            raise _error(answer)
        await self._keep(signed, known, answer.text)

    async def _edge(self, size: int, log_size: int) -> Frontier:
        """Return the right edge of the tree at the size that the witness knows.

        Raises:
            WitnessRefuses: it has seen a longer log than there is.
        """
        if size > log_size:
            raise WitnessRefuses(f"the witness has seen {size} records, the log has {log_size}")
        return await self._extended(Frontier(), size)

    async def _extended(self, edge: Frontier, size: int) -> Frontier:
        """Return the right edge of the tree at a size, from an earlier one and the leaves since."""
        extended = edge.copy()
        while extended.size < size:
            end = min(extended.size + _LEAVES, size)
            async with self._database.connection() as connection:
                leaves = await tiles.leaf_hashes(connection, extended.size, end)
            for leaf in leaves:
                extended.append(leaf)
        return extended

    async def _request(self, signed: SignedCheckpoint, known: Frontier) -> _Answer:
        proof: list[bytes] = []
        if known.size:
            async with self._database.connection() as connection:
                leaves = await tiles.leaf_hashes(connection, known.size, signed.checkpoint.size)
            proof = consistency_from(known, leaves)
        body = WitnessRequest(known.size, tuple(proof), signed).encode()
        timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s)
        connector = aiohttp.TCPConnector(ssl=witness_context(self._settings), force_close=True)
        url = f"{self._settings.url.rstrip('/')}/add-checkpoint"
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.post(url, data=body, allow_redirects=False) as response,
        ):
            text = (await response.content.read(_MAX_ANSWER)).decode("utf-8", "replace")
            return _Answer(response.status, response.content_type, text)

    async def _keep(self, signed: SignedCheckpoint, known: Frontier, line: str) -> None:
        """Verify and store a cosignature, with the edge of the tree it is for.

        Raises:
            WitnessRefuses: what came is no cosignature of this witness.
        """
        size = signed.checkpoint.size
        try:
            whole = parse_signed(with_cosignatures(signed.note, [line]))
            verify_cosignature(whole, self._key)
        except (AuditChainBroken, MalformedRequest) as exc:
            raise WitnessRefuses(exc.reason) from exc
        edge = await self._extended(known, size)
        async with self._database.connection() as connection, connection.transaction():
            await store.add_cosignature(connection, size, self._key.name, line, edge)
        metrics.WITNESS_SIZE.labels(self._key.name).set(size)
        metrics.COSIGNATURES.labels(self._key.name).inc()


def witness_context(settings: WitnessSettings) -> ssl.SSLContext:
    """Return how a witness is verified and how it knows us; files are read at every call.

    Raises:
        OSError: a file cannot be used.
    """
    context = ssl.create_default_context(cafile=str(settings.ca_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.certificate_file is not None:
        context.load_cert_chain(settings.certificate_file, settings.key_file)
    return context


def check_witness(settings: WitnessSettings) -> None:
    """Read what the settings of a witness name.

    Raises:
        ConfigurationError: a file cannot be used.
    """
    try:
        witness_context(settings)
    except OSError as exc:
        raise ConfigurationError(f"witness {settings.url}: {exc}") from exc


def _error(answer: _Answer) -> Exception:
    reason = f"HTTP {answer.status}: {' '.join(answer.text.split())[:200]}"
    if answer.status in {400, 403, 404, 409, 422}:
        return WitnessRefuses(reason)
    return ConnectionRefusedError(reason)


def _size(text: str) -> int:
    try:
        return int(text)
    except ValueError as exc:
        raise WitnessRefuses("the witness answers with a size that is none") from exc
