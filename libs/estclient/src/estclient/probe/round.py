"""One round of the probe: what a client, a relying party and an operator do, step by step.

1. ``cacerts``   fetch the CA certificates; a root of the trust anchors leads to them
2. ``enroll``    a certificate for a new key
3. ``repeat``    the same request again: the same certificate
4. ``renew``     with the certificate, for another key: the same names
5. ``chain``     both certificates chain to the trust anchors and are of now
6. ``ocsp``      the responder named in the certificate says good
7. ``crl``       the CRL named in the certificate does not list it
8. ``ledger``    the operator's command finds it, not revoked
9. ``siem``      its audit record has arrived
10. ``command-…``  commands of the operator's own

Keys are in memory only, and end with the round.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.agent.bundle import Bundle, verify_bundle
from estclient.agent.generation_files import read_certificates
from estclient.est.client import Enrolled, ESTClient, Limits
from estclient.est.keys import PrivateKey, csr_like, key_pem, load_key, make_csr, make_key
from estclient.est.trust_anchors import UNREADABLE, take_up
from estclient.operators.client import connect
from estclient.probe import metrics, revocation
from estclient.probe.private_files import private_files
from estclient.probe.report import Round, StepFailed, StepResult
from estclient.probe.settings import CommandSettings, ProbeSettings
from estclient.probe.siem_file import SIEMFile
from estcore.clock import Clock, monotonic_s
from estcore.errors import ConfigurationError, ESTSuiteError, in_words
from estcore.ids import serial_hex
from estcore.runtime.settings import read_secret

_FAULTS: tuple[type[Exception], ...] = (
    ESTSuiteError,
    OSError,
    aiohttp.ClientError,
    *UNREADABLE,
)
_SHARE = 0.5
"""Of a step's deadline: a client stops waiting then, so that the last answer is the result."""
_PAUSE_S = 0.5
_TEXT_LIMIT = 200
Action = Callable[[], Awaitable[str]]


class _Skip(Exception):
    """The step does not apply to this certificate."""


def check_files(settings: ProbeSettings) -> None:
    """Read every file that the settings name.

    Raises:
        ConfigurationError: one cannot be read or used.
    """
    _client(settings, pem=_trust_pem(settings), identity=_identity(settings))
    _anchors(settings)


async def run_round(settings: ProbeSettings, clock: Clock) -> Round:
    """Run all steps; each has its deadline, and one whose predecessor failed is not run."""
    return await _Round(settings, clock).run()


@dataclass
class _Round:
    settings: ProbeSettings
    clock: Clock
    results: list[StepResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._authorities: tuple[x509.Certificate, ...] = ()
        self._issuer: x509.Certificate | None = None
        self._key: PrivateKey = make_key(self.settings.key_algorithm)
        self._csr = make_csr(self._key, self.settings.subject, self.settings.san)
        self._first: Enrolled | None = None
        self._renewed: tuple[Enrolled, PrivateKey] | None = None
        self._siem: SIEMFile | None = None
        self._finding: StepFailed | None = None

    async def run(self) -> Round:
        if self.settings.siem is not None:
            self._siem = SIEMFile(self.settings.siem.file)
        await self._step("cacerts", self._cacerts)
        await self._step("enroll", self._enroll)
        await self._step("repeat", self._repeat, needs=("enroll",))
        await self._step("renew", self._renew, needs=("enroll",))
        await self._step("chain", self._chain, needs=("cacerts", "enroll"))
        await self._step("ocsp", self._ocsp, needs=("chain",))
        await self._step("crl", self._crl, needs=("chain",))
        await self._step("ledger", self._ledger, needs=("enroll",))
        siem = self.settings.siem
        siem_s = siem.timeout_s if siem is not None else None
        await self._step("siem", self._in_siem, needs=("enroll",), timeout_s=siem_s)
        for command in self.settings.commands:
            await self._step(
                f"command-{command.name}",
                lambda command=command: self._command(command),  # type: ignore[misc]  # bound now
                needs=("enroll",),
                timeout_s=command.timeout_s,
            )
        newest = self._newest
        return Round(
            tuple(self.results),
            serial=serial_hex(newest.certificate.serial_number) if newest else None,
            correlation_id=newest.correlation_id if newest else None,
        )

    async def _step(
        self,
        name: str,
        action: Action,
        *,
        needs: tuple[str, ...] = (),
        timeout_s: float | None = None,
    ) -> None:
        done = {r.step for r in self.results if r.result == "ok"}
        if missing := [step for step in needs if step not in done]:
            text = f"needs {', '.join(missing)}"
            self.results.append(StepResult(name, "not run", text=text))
            return
        limit_s = timeout_s or self.settings.step_timeout_s
        self._finding = None
        start, deadline = monotonic_s(), asyncio.timeout(limit_s)
        try:
            async with deadline:
                text = await action()
            result = StepResult(name, "ok", monotonic_s() - start, text=text)
        except _Skip as exc:
            result = StepResult(name, "skipped", text=str(exc))
        except TimeoutError as exc:
            seconds = monotonic_s() - start
            text = f"no result in {limit_s:g} s" if deadline.expired() else in_words(exc)
            late = self._late(text)
            result = StepResult(name, "failed", seconds, late.code, late.reason)
        except _FAULTS as exc:
            result = StepResult(name, "failed", monotonic_s() - start, _code(exc), _reason(exc))
        if result.result != "skipped":
            metrics.STEP_SECONDS.labels(name).observe(result.seconds)
        if result.code is not None:
            metrics.STEP_FAILURES.labels(name, result.code).inc()
        self.results.append(result)

    def _late(self, text: str) -> StepFailed:
        """Return what a step that waits had found, or that it had no result at all."""
        return self._finding or StepFailed(text, code="probe.deadline")

    async def _cacerts(self) -> str:
        received = await self._anonymous().cacerts()
        anchors = _anchors(self.settings)
        self._authorities = take_up(anchors, received, now=self.clock.now())
        return f"{len(self._authorities)} CA certificates"

    async def _enroll(self) -> str:
        self._first = await self._authenticated().simpleenroll(self._csr)
        return _name(self._first.certificate)

    async def _repeat(self) -> str:
        again = await self._authenticated().simpleenroll(self._csr)
        if again.certificate != self._enrolled.certificate:
            text = f"the same request got another certificate: {_name(again.certificate)}"
            raise StepFailed(text, code="probe.repeat_differs")
        return "the same certificate"

    async def _renew(self) -> str:
        current = self._enrolled.certificate
        key = make_key(self.settings.key_algorithm)
        client = _client(
            self.settings,
            pem=_trust_pem(self.settings),
            identity=(current.public_bytes(Encoding.PEM), key_pem(self._key)),
        )
        renewed = await client.simplereenroll(csr_like(current, key))
        new = renewed.certificate
        if new.subject != current.subject or _san(new) != _san(current):
            raise StepFailed("the renewed certificate has other names", code="probe.renewed_names")
        self._renewed = (renewed, key)
        return _name(new)

    async def _chain(self) -> str:
        now = self.clock.now()
        pairs = [(self._enrolled, self._key)]
        if self._renewed is not None:
            pairs.append(self._renewed)
        for enrolled, key in pairs:
            bundle = Bundle(enrolled.certificate, key, self._authorities)
            chain = verify_bundle(bundle, now=now)
            self._issuer = chain[1] if len(chain) > 1 else chain[0]
        return f"valid until {pairs[-1][0].certificate.not_valid_after_utc.isoformat()}"

    async def _ocsp(self) -> str:
        certificate = self._latest.certificate
        url = revocation.ocsp_url(certificate)
        if url is None:
            return _absent("OCSP responder", required=self.settings.revocation.require_ocsp)
        return await self._patiently(
            lambda: revocation.check_ocsp(url, certificate, self._issued_by, now=self.clock.now())
        )

    async def _crl(self) -> str:
        certificate = self._latest.certificate
        url = revocation.crl_url(certificate)
        if url is None:
            return _absent("CRL", required=self.settings.revocation.require_crl)
        return await self._patiently(
            lambda: revocation.check_crl(url, certificate, self._issued_by, now=self.clock.now())
        )

    async def _patiently(self, ask: Action) -> str:
        """Repeat a question until the deadline: a responder may just be starting."""
        while True:
            try:
                return await ask()
            except StepFailed as exc:
                if exc.code not in {"probe.ocsp_status", "probe.http_status"}:
                    raise
                self._finding = exc
            await asyncio.sleep(_PAUSE_S)

    async def _ledger(self) -> str:
        if self.settings.operator is None:
            raise _Skip("no operator in the settings")
        certificate = self._latest.certificate
        operator, bus = await connect(self.settings.operator, self.clock)
        try:
            asked = {"serial": serial_hex(certificate.serial_number)}
            shown = await operator.send("ca-signer", "certificate-show", asked)
        finally:
            await bus.close()
        if shown.get("certificate") != certificate.public_bytes(Encoding.DER).hex():
            raise StepFailed("the ledger has another certificate", code="probe.ledger_differs")
        if shown.get("revoked_at") is not None:
            raise StepFailed("the ledger says revoked", code="probe.ledger_revoked")
        return f"issuer {shown.get('issuer')}, profile {shown.get('profile')}"

    async def _in_siem(self) -> str:
        siem = self.settings.siem
        if siem is None or self._siem is None:
            raise _Skip("no SIEM in the settings")
        serial = serial_hex(self._latest.certificate.serial_number)
        text = f"{siem.file} has no record of {serial}"
        self._finding = StepFailed(text, code="probe.siem_missing")
        while not self._siem.has(serial):  # noqa: ASYNC110 - another process writes the file
            await asyncio.sleep(_PAUSE_S)
        return "the record has arrived"

    async def _command(self, command: CommandSettings) -> str:
        latest = self._latest
        environment = {
            **os.environ,
            "EST_SERIAL": serial_hex(latest.certificate.serial_number),
            "EST_FINGERPRINT": Bundle(latest.certificate, self._key, ()).fingerprint,
            "EST_CORRELATION_ID": latest.correlation_id or "",
        }
        while code := await _run(command.command, environment):
            self._finding = StepFailed(f"exit code {code}", code="probe.command")
            await asyncio.sleep(_PAUSE_S)
        return "exit code 0"

    @property
    def _newest(self) -> Enrolled | None:
        return self._renewed[0] if self._renewed is not None else self._first

    @property
    def _latest(self) -> Enrolled:
        assert self._newest is not None  # noqa: S101 - the step needs "enroll"
        return self._newest

    @property
    def _enrolled(self) -> Enrolled:
        assert self._first is not None  # noqa: S101 - the step needs "enroll"
        return self._first

    @property
    def _issued_by(self) -> x509.Certificate:
        assert self._issuer is not None  # noqa: S101 - the step needs "chain"
        return self._issuer

    def _anonymous(self) -> ESTClient:
        return _client(self.settings, pem=_trust_pem(self.settings))

    def _authenticated(self) -> ESTClient:
        settings = self.settings
        return _client(settings, pem=_trust_pem(settings), identity=_identity(settings))


def _client(
    settings: ProbeSettings,
    *,
    pem: bytes,
    identity: tuple[bytes, bytes] | tuple[str, str] | None = None,
) -> ESTClient:
    """Return a client: with certificate and key (octets), user and secret (text), or neither."""
    server, longest_s = settings.server, settings.step_timeout_s * _SHARE
    limits = Limits(
        timeout_s=min(server.timeout_s, longest_s),
        attempts=3,
        pending_limit_s=min(server.pending_limit_s, longest_s),
        longest_pause_s=longest_s / 4,
    )
    urls, label = server.urls, server.label
    if identity is None:
        return ESTClient(urls, trust=pem, label=label, limits=limits)
    first, second = identity
    if isinstance(first, str) and isinstance(second, str):
        return ESTClient(urls, trust=pem, label=label, limits=limits, secret=(first, second))
    assert isinstance(first, bytes)  # noqa: S101 - the other kind of pair
    assert isinstance(second, bytes)  # noqa: S101
    with private_files(first, second) as (certificate, key):
        credential = (certificate, key)
        return ESTClient(urls, trust=pem, label=label, limits=limits, credential=credential)


def _identity(settings: ProbeSettings) -> tuple[bytes, bytes] | tuple[str, str]:
    """Return what the first certificate is asked for with, read anew: it may have been renewed."""
    if settings.secret is not None:
        secret = read_secret(settings.secret.secret_file, "the enrollment secret")
        return settings.secret.user, secret
    assert settings.credential is not None  # noqa: S101 - one of the two, by the settings
    key = read_secret(settings.credential.key_file, "the key").encode()
    load_key(key)
    return _read(settings.credential.certificate_file), key


def _trust_pem(settings: ProbeSettings) -> bytes:
    return _read(settings.server.trust_file)


def _anchors(settings: ProbeSettings) -> tuple[x509.Certificate, ...]:
    file = settings.issuer_trust_file or settings.server.trust_file
    try:
        return tuple(read_certificates(_read(file)))
    except UNREADABLE as exc:
        raise ConfigurationError(f"cannot read certificates from {file}") from exc


def _read(path: os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - as it is given
            return file.read()
    except OSError as exc:
        raise ConfigurationError(f"cannot read {path}: {exc.strerror}") from exc


async def _run(command: tuple[str, ...], environment: dict[str, str]) -> int:
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *command, stdin=quiet, stdout=quiet, stderr=quiet, env=environment
    )
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _absent(what: str, *, required: bool) -> str:
    if required:
        raise StepFailed(f"the certificate names no {what}", code="probe.no_revocation")
    raise _Skip(f"the certificate names no {what}")


def _name(certificate: x509.Certificate) -> str:
    return f"serial {serial_hex(certificate.serial_number)}"


def _san(certificate: x509.Certificate) -> bytes | None:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return None
    return found.value.public_bytes()


def _code(exc: Exception) -> str:
    if isinstance(exc, ESTSuiteError):
        return exc.code
    return "probe.unreachable" if isinstance(exc, OSError | aiohttp.ClientError) else "probe.failed"


def _reason(exc: Exception) -> str:
    text = exc.reason if isinstance(exc, ESTSuiteError) else in_words(exc)
    return " ".join(text.split())[:_TEXT_LIMIT]
