"""Keys in a PKCS#11 token: bounded queue, deadlines, checked signatures, circuit breaker.

1. Refuse at once while the circuit breaker is open or the queue is full.
2. Start the worker process if there is none: open, log in, find the keys.
3. Write all requests to its pipe; await the responses in order.
4. Verify every signature with the issuer's key before it is used.

Any failure in 2 to 4 kills the process and counts for the circuit breaker; the caller gets
``KeyStoreUnavailable`` and defers the requests. A new process is started only when the circuit
breaker allows it. A rejected PIN is not tried again: that would lock the token.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from ca_signer import metrics
from ca_signer.circuit_breaker import Breaker
from ca_signer.settings import TokenSettings
from ca_signer.signing import signatures
from ca_signer.signing.hsm.protocol import (
    Failed,
    Find,
    Frame,
    Key,
    Kind,
    Open,
    ProtocolBroken,
    encode_sign,
)
from ca_signer.signing.hsm.worker_process import (
    MISCONFIGURED,
    PIN_REFUSED,
    WORKER,
    Answer,
    WorkerProcess,
    explained,
    failed,
)
from estcore.clock import monotonic_s
from estcore.errors import ConfigurationError, KeyStoreUnavailable
from estcore.pki.keys import spki_der
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop
from estcore.runtime.settings import read_secret

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.25
_STATES = {"closed": 0, "half_open": 1, "open": 2}
_STOPPED = 3


class TokenKey:
    """The key store of one issuer whose key is in a token."""

    def __init__(
        self, token: Token, settings: TokenSettings, key: CertificatePublicKeyTypes
    ) -> None:
        self.token, self.public_key = token, key
        self.find = Find(settings.key_id, settings.key_label or "")
        self._number = token.add(self)

    @property
    def ready(self) -> bool:
        """A signature may be asked for now."""
        return self.token.ready

    async def sign(self, tbs: bytes) -> bytes:
        """Return the signature over ``tbs``; it verifies.

        Raises:
            KeyStoreUnavailable: no signature now.
        """
        return (await self.token.sign(self._number, [tbs]))[0]

    async def sign_many(self, tbs: Sequence[bytes]) -> list[bytes]:
        """Return the signatures over each of ``tbs``, all or none; one round trip for all."""
        return await self.token.sign(self._number, tbs)


class Token:
    """One token: its worker process, its keys, the breaker before it."""

    def __init__(self, settings: TokenSettings, *, command: Sequence[str] = WORKER) -> None:
        self.settings, self.name = settings, settings.label or settings.serial or ""
        self.starts = 0
        self.breaker = Breaker(
            failures=settings.failures,
            open_s=settings.pause_s,
            longest_s=settings.longest_pause_s,
        )
        self._command = command
        self._keys: list[TokenKey] = []
        self._link: WorkerProcess | None = None
        self._old: WorkerProcess | None = None
        self._error = KeyStoreUnavailable("the token was never opened")
        self._stopped: KeyStoreUnavailable | None = None
        self._opening = asyncio.Lock()
        self._inside = 0

    def add(self, key: TokenKey) -> int:
        """Take a key that is found when the token is opened; returns its number."""
        self._keys.append(key)
        return len(self._keys) - 1

    @property
    def ready(self) -> bool:
        """Open, and the breaker lets something through."""
        return self._link is not None and self.breaker.due(monotonic_s())

    @property
    def pid(self) -> int:
        """Process id of the worker, 0 without one."""
        return self._link.pid if self._link else 0

    async def start(self) -> None:
        """Open the token, if it is there; if not, ``watch`` opens it later.

        Raises:
            ConfigurationError: the token is there and its keys are not those of the issuers.
        """
        try:
            await self._opened()
        except KeyStoreUnavailable:
            log.warning(
                "starting without the token, it is unavailable", extra=fields(token=self.name)
            )

    async def watch(self, stop: asyncio.Event) -> None:
        """Open the token again whenever it was lost and the breaker lets us."""
        while not await sleep_or_stop(stop, _LOOK_EVERY_S):
            state = _STOPPED if self._stopped else _STATES[self.breaker.state]
            metrics.TOKEN_BREAKER.labels(self.name).set(state)
            if self._link or self._stopped or not self.breaker.due(monotonic_s()):
                continue
            try:
                await self._opened()
            except (KeyStoreUnavailable, ConfigurationError) as exc:
                log.debug("token still unavailable", extra=fields(code=exc.code))

    async def stop(self) -> None:
        """End the worker process."""
        self._stopped = self._stopped or KeyStoreUnavailable("the token is closed")
        if self._link is not None:
            self._link.fail(self._stopped)
        if self._old is not None:
            await self._old.ended()

    async def sign(self, number: int, tbs: Sequence[bytes]) -> list[bytes]:
        """Return one signature for each of ``tbs``, by key ``number``; each verifies.

        Raises:
            KeyStoreUnavailable: not all could be made; none is returned.
        """
        # 1. Refuse at once.
        if self._stopped is not None:
            _raise(self._stopped)
        if self._inside + len(tbs) > self.settings.queue:
            raise KeyStoreUnavailable("too many wait for the token", code="keystore.busy")
        if not self.breaker.admit(monotonic_s()):
            raise KeyStoreUnavailable(
                "circuit breaker open for token", code="keystore.circuit_open"
            )
        self._enter(len(tbs))
        try:
            async with asyncio.timeout(self.settings.wait_s):
                signed = await self._sign(number, tbs)
        except TimeoutError as exc:
            raise KeyStoreUnavailable("waited too long", code="keystore.busy") from exc
        except ConfigurationError as exc:
            raise KeyStoreUnavailable(exc.reason, code=exc.code) from exc
        finally:
            self._enter(-len(tbs))
        self.breaker.succeeded()
        return signed

    async def _sign(self, number: int, tbs: Sequence[bytes]) -> list[bytes]:
        link = await self._opened()
        key = self._keys[number].public_key
        # 3. Write all, await in order.
        waiting = [
            link.request(Kind.SIGN, encode_sign(number, *signatures.for_token(key, octets)))
            for octets in tbs
        ]
        signed = []
        for octets, future in zip(tbs, waiting, strict=True):
            answer = await future
            try:
                # 4. A signature that does not verify is never returned.
                signature = signatures.from_token(key, self._expect(answer, Kind.SIGNED).body)
                signatures.verify(key, octets, signature)
            except InvalidSignature:
                log.error("token returned a wrong signature", extra=fields(token=self.name))
                link.fail(KeyStoreUnavailable("wrong signature", code="keystore.wrong_signature"))
                _raise(self._error)
            except (KeyStoreUnavailable, ConfigurationError) as exc:
                link.fail(KeyStoreUnavailable(exc.reason, code=exc.code))
                raise
            signed.append(signature)
        return signed

    async def _opened(self) -> WorkerProcess:
        """2. Return the worker process; callers that arrive while it starts share the outcome."""
        before = self.starts
        async with self._opening:
            if self._link is not None:
                return self._link
            if self._stopped is not None or self.starts != before:
                _raise(self._stopped or self._error)
            self.starts += 1
            if self.starts > 1:
                metrics.TOKEN_RESTARTS.labels(self.name).inc()
            if self._old is not None:
                await self._old.ended()
            self._link = await self._open()
            log.info("token opened", extra=fields(token=self.name, keys=len(self._keys)))
            return self._link

    async def _open(self) -> WorkerProcess:
        link = await WorkerProcess.start(
            self._command,
            timeout_s=self.settings.open_s,
            lost=self._lost,
            took=metrics.TOKEN_SECONDS.labels(self.name).observe,
        )
        try:
            await self._log_in(link)
        except (KeyStoreUnavailable, ConfigurationError) as exc:
            link.fail(KeyStoreUnavailable(exc.reason, code=exc.code))
            raise
        except BaseException:  # Cleanup, then raised again: cancelled or timed out.
            link.fail(KeyStoreUnavailable("opening it took too long", code="keystore.timeout"))
            raise
        if link.error is not None:  # it ended right after its last answer
            _raise(link.error)
        link.timeout_s = self.settings.timeout_s
        return link

    async def _log_in(self, link: WorkerProcess) -> None:
        settings = self.settings
        request = Open(
            module=str(settings.module),
            label=settings.label or "",
            serial=settings.serial or "",
            pin=read_secret(settings.pin_file, f"the PIN of the token {self.name}"),
            write=False,
        )
        self._expect(await link.request(Kind.OPEN, request.encode()), Kind.OPENED)
        for key in self._keys:
            answer = await link.request(Kind.FIND, key.find.encode())
            try:
                key_attributes = Key.decode(self._expect(answer, Kind.KEY).body)
            except ProtocolBroken as exc:
                raise KeyStoreUnavailable(str(exc), code="keystore.worker") from exc
            reported = signatures.public_key(key_attributes)
            # A token that does not report its public key is checked by its first signature.
            if reported is not None and spki_der(reported) != spki_der(key.public_key):
                raise ConfigurationError(
                    f"key {key.find.key_id} in the token {self.name} is not the certificate's",
                    code="keystore.key",
                )

    def _expect(self, answer: Answer, kind: Kind) -> Frame:
        """Return the answer if it is of this kind; raise what is wrong otherwise."""
        if isinstance(answer, KeyStoreUnavailable):
            _raise(answer)
        try:
            wrong = failed(answer)
        except ProtocolBroken as exc:
            raise KeyStoreUnavailable(str(exc), code="keystore.worker") from exc
        if wrong is not None:
            self._refused(wrong)
        if answer.kind is not kind:
            raise KeyStoreUnavailable("another answer than asked for", code="keystore.worker")
        return answer

    def _refused(self, wrong: Failed) -> NoReturn:
        reason = f"token {self.name}: {explained(wrong)}"
        if wrong.phase == "login" and wrong.error in PIN_REFUSED:
            self._stopped = KeyStoreUnavailable(reason, code="keystore.pin")
            log.error(
                "PIN rejected by the token, not retried until restart",
                extra=fields(token=self.name, reason=reason),
            )
            _raise(self._stopped)
        if wrong.error in MISCONFIGURED:
            raise ConfigurationError(reason, code="keystore.key")
        raise KeyStoreUnavailable(reason)

    def _lost(self, link: WorkerProcess, error: KeyStoreUnavailable) -> None:
        """Called once for every link that failed, open or on its way there."""
        self._old, self._error = link, error
        if self._link is link:
            self._link = None
        if self._stopped is not None:
            return
        self.breaker.failed(monotonic_s())
        metrics.TOKEN_FAILURES.labels(self.name, error.code).inc()
        log.warning(
            "token failed", extra=fields(token=self.name, code=error.code, reason=error.reason)
        )

    def _enter(self, count: int) -> None:
        self._inside += count
        metrics.TOKEN_QUEUE.labels(self.name).set(self._inside)


@asynccontextmanager
async def opened(tokens: Sequence[Token]) -> AsyncIterator[None]:
    """Open tokens for as long as the context lasts; one that is unavailable is opened by ``watch``.

    Raises:
        ConfigurationError: a token is there and its keys are not those of the issuers.
    """
    try:
        for token in tokens:
            await token.start()
        yield
    finally:
        for token in tokens:
            await token.stop()


def _raise(error: KeyStoreUnavailable) -> NoReturn:
    """Raise an error that others may raise as well: each caller gets an exception of its own."""
    raise KeyStoreUnavailable(error.reason, code=error.code) from error
