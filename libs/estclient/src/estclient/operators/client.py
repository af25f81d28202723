"""Sends signed commands to the services and awaits their answers."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.errors import BundleInvalid
from estclient.est.keys import PrivateKey, load_key
from estclient.operators.settings import OperatorSettings
from estcore.clock import Clock
from estcore.errors import BusUnavailable, ConfigurationError, Unavailable, rejection
from estcore.messages.commands import LIFETIME, Command, CommandAnswered, sign_command
from estcore.messages.envelope import decode
from estcore.messages.topics import SUBMISSION_VERBS, command_topic
from estcore.runtime.bus import Bus, senders_of
from estcore.runtime.secret_files import read_secret_octets

_SENDINGS = 3


class Operator:
    """An operator's certificate and key, and a connection to the bus."""

    def __init__(
        self, bus: Bus, certificate: bytes, key: PrivateKey, clock: Clock, *, timeout_s: float
    ) -> None:
        self._bus = bus
        self._certificate = certificate
        self._key = key
        self._clock = clock
        self._timeout_s = timeout_s

    async def send(self, service: str, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Send a command and return the result; repeated under the same id without an answer.

        Raises:
            RequestRejected: refused, as the service says.
            Unavailable: no answer, or the service is unavailable; the outcome is unknown.
        """
        return await self._answer(service, verb, self._sign(service, verb, arguments))

    async def watch(
        self, service: str, verb: str, arguments: dict[str, Any], *, every_s: float
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the results of a verb that reads, again and again.

        The same command is sent until it is too old, so a look is not one audit record each.

        Raises:
            RequestRejected, Unavailable: as ``send``.
        """
        while True:
            signed, since = self._sign(service, verb, arguments), self._clock.now()
            while self._clock.now() - since < LIFETIME / 2:
                yield await self._answer(service, verb, signed)
                await asyncio.sleep(every_s)

    def _sign(self, service: str, verb: str, arguments: dict[str, Any]) -> bytes:
        now = int(self._clock.now().timestamp())
        command = Command(
            command_id=uuid.uuid4(),
            service=service,
            verb=verb,
            arguments={k: v for k, v in arguments.items() if v is not None},
            iat=now,
            exp=now + int(LIFETIME.total_seconds()),
        )
        return sign_command(self._key, self._certificate, command).encode()

    async def _answer(self, service: str, verb: str, signed: bytes) -> dict[str, Any]:
        answer = await self._ask(service, verb, signed)
        if answer.outcome == "unavailable":
            raise Unavailable(answer.reason or "not now", code=answer.code)
        if answer.outcome == "refused":
            raise rejection(
                answer.kind or "", answer.reason or "refused", answer.code or "request.rejected"
            )
        return answer.result or {}

    async def _ask(self, service: str, verb: str, data: bytes) -> CommandAnswered:
        topic, each = command_topic(service, verb), self._timeout_s / _SENDINGS
        for last in (False,) * (_SENDINGS - 1) + (True,):
            try:
                answer = await self._bus.request(
                    topic, data, answered_by=(service, f"{service}-upstream"), timeout_s=each
                )
                return decode(CommandAnswered, answer)
            except BusUnavailable as exc:
                if last and self._bus.client.is_connected:
                    process = f"{service}-upstream" if verb in SUBMISSION_VERBS else service
                    raise Unavailable(f"no {process} process answers") from exc
                if last:
                    raise
                await asyncio.sleep(0.2)
        raise BusUnavailable(f"no answer on {topic}")


async def connect(settings: OperatorSettings, clock: Clock) -> tuple[Operator, Bus]:
    """Read the certificate and connect; the caller closes the bus.

    Raises:
        ConfigurationError: a file cannot be read, or the key is not the certificate's.
        BusUnavailable: NATS does not answer in time.
    """
    certificate, key = _credential(settings.certificate_file, settings.key_file)
    senders_of(settings.bus)
    bus = Bus.unconnected("operator")
    try:
        async with asyncio.timeout(settings.timeout_s):
            await bus.open(settings.bus, "operator", "estctl", signs=False)
    except TimeoutError as exc:
        why = f": {bus.failure}" if bus.failure else ""
        raise BusUnavailable(f"NATS does not answer{why}") from exc
    return Operator(bus, certificate, key, clock, timeout_s=settings.timeout_s), bus


def _credential(certificate_file: Path, key_file: Path) -> tuple[bytes, PrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        key = load_key(read_secret_octets(key_file, "the operator's key"))
    except (OSError, ValueError, BundleInvalid) as exc:
        raise ConfigurationError(
            f"cannot use {certificate_file} and {key_file} as the operator's"
        ) from exc
    if key.public_key() != certificate.public_key():
        raise ConfigurationError(f"{key_file} is not the key of {certificate_file}")
    return certificate.public_bytes(Encoding.DER), key
