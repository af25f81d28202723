"""The thin port to NATS: publish, subscribe, request.

nats-py stays behind it: subscribers receive an ``Incoming``, pull consumers a ``Delivery``.
Publishing is confirmed (JetStream's PubAck awaited) or hinted (core NATS, may be lost).
What a service publishes is signed, and what it receives is verified (``messages.signatures``).
Consuming is in ``runtime.consume``, reading a stream in ``runtime.stored_messages``.
Connections are kept for ever: reconnecting never gives up, and a permission violation makes the
service unready (docs/architecture.md).
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from prometheus_client import Counter

from estcore.clock import monotonic_s
from estcore.errors import BusUnavailable, ConfigurationError, NotAuthenticated
from estcore.ids import is_token
from estcore.messages.signatures import (
    HEADER,
    NO_SENDERS,
    QUESTION,
    MessageKey,
    Sender,
    Senders,
    topic_pattern,
)
from estcore.runtime.confirmations import Confirmations
from estcore.runtime.logs import Repetition, fields
from estcore.runtime.nats_client import BUS_ERRORS, Client, Msg, Subscription, nats
from estcore.runtime.settings import BusSettings, read_secret

log = logging.getLogger(__name__)

_OUTBOUND_BYTES = 32 * 1024 * 1024
_HEADER_BYTES = 1024
_TTL = "Nats-TTL"
_MSG_ID = "Nats-Msg-Id"
_EXPECTED_STREAM = "Nats-Expected-Stream"
_NO_STREAM = "NO_SUCH_STREAM"
_NOT_ENABLED = b'"err_code":10039'
_WRONG_TOPIC = "message.topic"
_BATCH = 1024
_ERROR_EVERY_S = 10.0


REFUSED_MESSAGES = Counter(
    "estsuite_messages_refused_total",
    "Messages not signed, or not by a sender with the right to their topic.",
    ["code"],
)


@dataclass(frozen=True)
class Outgoing:
    """One message to publish. ``message_id`` lets JetStream drop a repeated one.

    ``ttl_s`` is after how many seconds a stream that permits it removes the message.
    """

    topic: str
    payload: bytes
    message_id: str | None = None
    ttl_s: int | None = None


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message as a core subscriber receives it; ``reply`` is empty where none is wanted.

    ``sender`` signed it, with ``signature``; None where the subscription takes messages of anyone.
    ``question`` names a request, and its answer is signed for that name.
    """

    topic: str
    payload: bytes
    reply: str = ""
    sender: Sender | None = None
    signature: str = ""
    question: str = ""


class _RandomNames:
    """Names of inboxes that cannot be computed from earlier ones, as those of NUIDs can."""

    def next(self) -> bytearray:
        return bytearray(secrets.token_hex(11).encode())


class Bus:
    """A connection to NATS."""

    def __init__(self, client: Client, inbox_prefix: str) -> None:
        self.client = client
        self.inbox_prefix = inbox_prefix
        self._confirmations = Confirmations(client)
        self.violation: str | None = None
        self.failure = ""
        """Why the last attempt to connect failed, TLS first; empty before any did."""
        self._key: MessageKey | None = None
        self._senders = NO_SENDERS
        self._closing = False
        self._refusal_logged = 0.0
        self._last_error = ("", 0.0)
        self._rights: tuple[str, ...] = ()
        self._on_reconnect: list[Callable[[], Awaitable[None]]] = []

    @classmethod
    def unconnected(cls, service: str) -> Bus:
        """Return a bus that is not connected yet; every use fails until ``open`` is done."""
        client = Client()
        client._nuid = _RandomNames()  # type: ignore[assignment] # noqa: SLF001 - no other way
        return cls(client, f"_INBOX_{service.replace('-', '')}")

    @classmethod
    async def connect(
        cls,
        settings: BusSettings,
        service: str,
        instance: str,
        *,
        seed: str | None = None,
        rights: Sequence[str] = (),
        signs: bool = True,
    ) -> Bus:
        """Connect, retrying until it works or the caller's deadline ends it.

        ``seed`` replaces the service's own NKey seed (used by ``migrate``); ``rights`` are topics
        tried at every connection (``try_rights``). What is no service does not sign.

        Raises:
            ConfigurationError: a file cannot be read, or what signs has no senders file.
        """
        bus = cls.unconnected(service)
        await bus.open(settings, service, instance, seed=seed, rights=rights, signs=signs)
        return bus

    async def open(
        self,
        settings: BusSettings,
        service: str,
        instance: str,
        *,
        seed: str | None = None,
        rights: Sequence[str] = (),
        signs: bool = True,
    ) -> None:
        """Connect, retrying until it works or the caller's deadline ends it.

        Raises:
            ConfigurationError: a file cannot be read, or what signs has no senders file.
        """
        self._rights = tuple(rights)
        secret = seed or read_secret(settings.nkey_seed_file, "the NKey seed")
        if settings.senders_file is not None:
            self._senders = senders_of(settings)
        if signs and seed is None:
            self._senders = senders_of(settings)
            self._key = MessageKey(secret, instance)
        unreachable = Repetition(log, "bus unreachable, retrying")
        while True:
            try:
                await self.client.connect(
                    servers=[u.strip() for u in settings.url.split(",")],
                    name=f"{service}/{instance}",
                    nkeys_seed_str=secret,
                    tls=_tls(settings),
                    inbox_prefix=self.inbox_prefix,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.25,  # type: ignore[arg-type] # seconds; floats work
                    ping_interval=10,
                    max_outstanding_pings=2,
                    pending_size=_OUTBOUND_BYTES,
                    error_cb=self._error,
                    disconnected_cb=self._disconnected,
                    reconnected_cb=self._reconnected,
                )
            except (TimeoutError, *BUS_ERRORS) as exc:
                self._failed(exc)
                unreachable.warn(error=self.failure)
                await asyncio.sleep(0.5)
                continue
            await self.try_rights(self._rights)
            return

    def _failed(self, error: BaseException) -> None:
        # The client raises "no servers available" after it reported why.
        if isinstance(error, ssl.SSLError) or not self.failure:
            self.failure = str(error) or type(error).__name__

    async def _error(self, error: Exception) -> None:
        text = str(error)
        if not self.client.is_connected:
            self._failed(error)
        if "permissions violation" in text.lower():
            self.violation = text
            log.error("bus permission violation", extra=fields(error=text))
            return
        now = monotonic_s()
        if text != self._last_error[0] or now - self._last_error[1] > _ERROR_EVERY_S:
            # Every attempt to reconnect fails for the same reason, several times a second.
            self._last_error = (text, now)
            log.warning("bus error", extra=fields(error=f"{type(error).__name__}: {text}"))

    async def _disconnected(self) -> None:
        if self._closing:
            return
        log.warning("bus connection lost, reconnecting")

    async def _reconnected(self) -> None:
        log.info("bus connection restored")
        self.violation = None  # rights may have been given meanwhile; a refusal sets it again
        await self.try_rights(self._rights)
        for callback in self._on_reconnect:
            await callback()

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call ``callback`` after every reconnect."""
        self._on_reconnect.append(callback)

    @property
    def rights(self) -> tuple[str, ...]:
        """Topics tried at every connection."""
        return self._rights

    @property
    def ready(self) -> bool:
        """Connected, and no topic was ever refused."""
        return self.client.is_connected and self.violation is None

    @property
    def connected(self) -> bool:
        """Connected at this moment."""
        return self.client.is_connected

    @property
    def closing(self) -> bool:
        """It is closed, or about to be: nothing is published any more."""
        return self._closing

    async def publish_confirmed(
        self, messages: Sequence[Outgoing], *, timeout_s: float = 5
    ) -> list[int]:
        """Publish to JetStream and await every PubAck; the outcome of a failure is unknown.

        Returns the sequences under which the streams stored them.

        Raises:
            BusUnavailable: not connected, no PubAck in time, stream full, or refused.
        """
        if not messages:
            return []
        confirmed = await self._publish(messages, timeout_s)
        try:
            await asyncio.wait((confirmed,), timeout=timeout_s)
        finally:
            if not confirmed.done():
                confirmed.cancel()
        if confirmed.cancelled():
            raise BusUnavailable("no confirmation from the bus")
        return confirmed.result()

    async def _publish(
        self, messages: Sequence[Outgoing], timeout_s: float
    ) -> asyncio.Future[list[int]]:
        if not self.client.is_connected:
            raise BusUnavailable("the bus is not connected")
        try:
            async with asyncio.timeout(timeout_s):
                return await self._confirmations.publish(
                    len(messages), lambda place, reply: self._send(messages[place], reply)
                )
        except (TimeoutError, *BUS_ERRORS) as exc:
            raise BusUnavailable("the bus took nothing") from exc

    async def submit(self, message: Outgoing, *, timeout_s: float) -> asyncio.Future[list[int]]:
        """Publish to JetStream; returns the future of the PubAck.

        The future raises BusUnavailable for a message that was refused, and is cancelled after
        ``timeout_s``.

        Raises:
            BusUnavailable: not connected.
        """
        confirmed = await self._publish([message], timeout_s)
        deadline = asyncio.get_running_loop().call_later(timeout_s, confirmed.cancel)
        confirmed.add_done_callback(lambda _: deadline.cancel())
        return confirmed

    def _check_size(self, payload: bytes) -> None:
        if len(payload) > self.client.max_payload - _HEADER_BYTES > 0:
            # The server ends the connection of who sends more, headers included.
            raise nats.errors.MaxPayloadError

    def _signed(self, topic: str, payload: bytes) -> dict[str, str]:
        self._check_size(payload)
        return {} if self._key is None else {HEADER: self._key.sign(topic, payload)}

    async def _send(self, message: Outgoing, reply: str) -> None:
        headers = self._signed(message.topic, message.payload)
        if message.message_id:
            key = self._key
            headers[_MSG_ID] = key.message_id(message.message_id) if key else message.message_id
        if message.ttl_s is not None:
            headers[_TTL] = str(message.ttl_s)
        await self.client.publish(message.topic, message.payload, reply=reply, headers=headers)

    async def try_rights(self, topics: Sequence[str]) -> None:
        """Publish a probe on each topic, so that a missing right shows at start.

        The probe expects a stream that does not exist, so no stream stores it, and ``subscribe``
        drops it before any handler. Where a right is missing the server reports a permission
        violation and the bus is not ready.
        """
        for topic in topics:
            try:
                await self.client.publish(topic, b"", headers={_EXPECTED_STREAM: _NO_STREAM})
            except BUS_ERRORS:
                log.debug("connection lost while publish permissions were probed")
                return

    async def probe(self, topic: str, *, timeout_s: float) -> bytes:
        """Return JetStream's answer to a message on ``topic`` that no stream stores.

        Raises:
            nats.errors.Error, TimeoutError, OSError: no answer.
        """
        answer = await self.client.request(
            topic, b"", timeout=timeout_s, headers={_EXPECTED_STREAM: _NO_STREAM}
        )
        return bytes(answer.data)

    async def ask_jetstream(self, subject: str, *, timeout_s: float) -> bytes:
        """Return the answer of JetStream's API, unverified: for metrics, not for decisions.

        In an account without JetStream that imports a part of the API, nats-server answers twice:
        itself, that JetStream is not enabled for the account, and from where it is.

        Raises:
            BusUnavailable: no answer.
        """
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def receive(message: Msg) -> None:
            if _NOT_ENABLED not in message.data and not answered.done():
                answered.set_result(message.data)

        inbox = self.client.new_inbox()
        try:
            subscription = await self.client.subscribe_plain(inbox, receive)
            try:
                await self.client.publish(f"$JS.API.{subject}", b"", reply=inbox)
                async with asyncio.timeout(timeout_s):
                    return await answered
            finally:
                await subscription.unsubscribe()
        except (TimeoutError, *BUS_ERRORS) as exc:
            raise BusUnavailable(f"no answer on $JS.API.{subject}") from exc

    async def publish_unconfirmed(self, topic: str, payload: bytes, *, reply: str = "") -> None:
        """Publish on core NATS, which does not confirm delivery.

        Raises:
            BusUnavailable: not connected, or the outbound buffer is full.
        """
        try:
            headers = self._signed(topic, payload)
            await self.client.publish(topic, payload, reply=reply, headers=headers)
        except BUS_ERRORS as exc:
            raise BusUnavailable("the bus took nothing") from exc

    async def answer(self, message: Incoming, payload: bytes) -> None:
        """Answer a request, signed for its name, if an answer is wanted.

        Raises:
            BusUnavailable: not connected, or the outbound buffer is full.
        """
        if not message.reply:
            return
        headers = {}
        if self._key is not None and is_token(message.question):
            headers[HEADER] = self._key.sign_answer(message.question, payload)
        try:
            self._check_size(payload)
            await self.client.publish(message.reply, payload, headers=headers)
        except BUS_ERRORS as exc:
            raise BusUnavailable("the bus took nothing") from exc

    async def subscribe(
        self,
        topic: str,
        handler: Callable[[Incoming], Awaitable[None]],
        *,
        queue: str = "",
        of_anyone: bool = False,
    ) -> Subscription:
        """Call ``handler`` for every verified core message on ``topic``, except probes of rights.

        ``of_anyone`` takes unsigned messages: for what proves itself, or is only asked.
        """
        expected = topic_pattern(topic)

        async def receive(message: Msg) -> None:
            incoming = self._accepted(message, expected, of_anyone=of_anyone)
            if incoming is not None:
                await handler(incoming)

        return await self.client.subscribe(topic, queue=queue, cb=receive)

    async def subscribe_plain(self, topic: str, handler: Callable[[Incoming], None]) -> None:
        """Call ``handler``, which must not wait, for every verified core message on ``topic``."""
        expected = topic_pattern(topic)

        def receive(message: Msg) -> None:
            incoming = self._accepted(message, expected)
            if incoming is not None:
                handler(incoming)

        await self.client.subscribe_plain(topic, receive)

    def _accepted(
        self, message: Msg, expected: re.Pattern[str], *, of_anyone: bool = False
    ) -> Incoming | None:
        """Return a message that was asked for, by a sender with the right to its topic."""
        headers = message.headers or {}
        if headers.get(_EXPECTED_STREAM) == _NO_STREAM:
            return None
        if expected.fullmatch(message.subject) is None:
            # A server answers on a reply subject of the asker's choice.
            self.refused(message.subject, NotAuthenticated("not asked for", code=_WRONG_TOPIC))
            return None
        sender = None if of_anyone else self.sender_of(message)
        if sender is None and not of_anyone:
            return None
        signature, question = headers.get(HEADER, ""), headers.get(QUESTION, "")
        return Incoming(message.subject, message.data, message.reply, sender, signature, question)

    def sender_of(self, message: Msg, *, topic: str | None = None) -> Sender | None:
        """Return who signed a message and may publish on its topic; otherwise None, and count it.

        ``topic`` replaces the message's own, where a stream returns what it stored.
        """
        header = message.headers.get(HEADER) if message.headers else None
        topic = message.subject if topic is None else topic
        try:
            return self._senders.verify(topic, message.data, header)
        except NotAuthenticated as exc:
            self.refused(topic, exc)
            return None

    def refused(self, topic: str, error: NotAuthenticated) -> None:
        """Count and log a message that is refused; of a flood one line a second."""
        REFUSED_MESSAGES.labels(error.code).inc()
        now = monotonic_s()
        if now - self._refusal_logged > 1:
            self._refusal_logged = now
            log.warning(
                "message refused",
                extra=fields(topic=topic[:200], code=error.code, reason=error.reason),
            )

    def use_keys(self, senders: Senders, seed: str) -> None:
        """Verify by these senders and sign with this NKey seed from now on."""
        self._senders = senders
        if self._key is not None:
            self._key = MessageKey(seed, self._key.instance)
            # Used when the server ends the connection of the previous NKey. The client keeps the
            # public key beside the seed, and has no public way to replace either.
            self.client._nkeys_seed_str = seed  # noqa: SLF001
            self.client._setup_nkeys_seed_connect()  # noqa: SLF001

    async def request(
        self, topic: str, payload: bytes, *, answered_by: Sequence[str], timeout_s: float = 5
    ) -> bytes:
        """Return the answer to a core request, signed by one of the services ``answered_by``.

        Raises:
            BusUnavailable: no answer, not in time, or not signed by such a service.
        """
        question = secrets.token_hex(16)
        try:
            headers = {**self._signed(topic, payload), QUESTION: question}
            answer = await self.client.request(topic, payload, timeout=timeout_s, headers=headers)
        except (TimeoutError, *BUS_ERRORS) as exc:
            raise BusUnavailable(f"no answer on {topic}") from exc
        octets = bytes(answer.data)
        header = answer.headers.get(HEADER) if answer.headers else None
        try:
            if not answer.subject.startswith(f"{self.inbox_prefix}."):
                raise NotAuthenticated("not an answer", code=_WRONG_TOPIC)
            self._senders.verify_answer(question, octets, header, services=answered_by)
        except NotAuthenticated as exc:
            self.refused(answer.subject, exc)
            raise BusUnavailable(f"the answer on {topic} is not signed as it must be") from exc
        return octets

    async def close(self) -> None:
        """Send what is buffered, answer what is in hand, close."""
        self._closing = True
        try:
            async with asyncio.timeout(10):
                if self.client.is_connected:
                    await self.client.drain()
                else:
                    await self.client.close()
        except (TimeoutError, *BUS_ERRORS) as exc:
            log.warning("bus connection did not close cleanly", extra=fields(error=str(exc)))


def senders_of(settings: BusSettings) -> Senders:
    """Return the senders of the senders file.

    Raises:
        ConfigurationError: there is none, or it cannot be read or used; names the file.
    """
    path = settings.senders_file
    if path is None:
        raise ConfigurationError("bus.senders_file is missing", code="senders.missing")
    try:
        return Senders.read(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"cannot read the senders file {path}") from exc
    except ConfigurationError as exc:
        raise ConfigurationError(f"{path}: {exc.reason}", code=exc.code) from exc


def _tls(settings: BusSettings) -> ssl.SSLContext | None:
    if settings.ca_file is None:
        return None
    context = ssl.create_default_context(cafile=str(settings.ca_file))
    if settings.certificate_file is not None:
        context.load_cert_chain(settings.certificate_file, settings.key_file)
    return context
