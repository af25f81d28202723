"""The public keys of one token issuer, through rotation, attack and outage.

One job fetches, now and then and when it is asked to; requests only ask and wait. The last good
set stays while the issuer is unavailable, on disk too, until it is too old to be trusted. An
unknown key id causes one fetch for all who wait, at most once per cool-down, so a flood of invented
ids costs the issuer nothing. Keys that left the set are gone at the next fetch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import ssl
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
from joserfc.jwk import ECKey, OKPKey, RSAKey, import_key
from joserfc.util import base64_to_int

from est_frontend import metrics
from est_frontend.settings import TokenIssuerSettings
from estcore.clock import monotonic_s, unix_ms
from estcore.errors import ConfigurationError
from estcore.pki.jws import JOSE_ERRORS, read_json
from estcore.pki.jws import JSONWebKey as PublicKey
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

MEMBERS = {"RSA": ("e", "kty", "n"), "EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x")}
_PRIVATE = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}
_BODY_LIMIT = 262_144
_TIMEOUT_S = 3.0
# A fetch that is under way, and the one that was asked for.
_PATIENCE_S = 2 * _TIMEOUT_S + 1
_AGAIN_S = 30.0
_AGAIN_WITHOUT_KEYS_S = 5.0
_FUTURE_S = 60
_MAX_KEYS = 64
_UNKNOWN_LIMIT = 1024
_MIN_RSA_BITS = 2048
# RFC 7517 section 8.5. A Kubernetes API server answers 406 if asked for application/json alone.
_HEADERS = {
    "Accept": "application/jwk-set+json, application/json",
    "Accept-Encoding": "identity",
}


class KeySource:
    """Keys by their id (kid)."""

    def __init__(self, settings: TokenIssuerSettings, folder: Path) -> None:
        self._settings = settings
        self._file = folder / f"jwks.{settings.id}.json"
        self._tls = _tls(settings.ca_file)
        self._keys: dict[str, PublicKey] = {}
        self._fetched_s = 0.0
        self._unknown: dict[str, float] = {}
        # Fetches are numbered: those begun, those ended, and the one that is awaited.
        self._begun = self._ended = self._needed = 0
        self._asked_s = -settings.cool_down_s
        self._good = False
        self._wake = asyncio.Event()
        self._round = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Keys were fetched once, by this process or an earlier one.

        Says nothing about their age: a long outage of the issuer must not take away the front
        end, which knows other ways to authenticate.
        """
        return bool(self._keys)

    @property
    def usable(self) -> bool:
        """There are keys, and they are not too old."""
        return self.ready and monotonic_s() - self._fetched_s < self._settings.keep_s

    def load(self) -> None:
        """Read what an earlier run kept; a damaged file is as good as none.

        The hash finds damage. Who may write to the folder is trusted, as for all state there.
        """
        try:
            self._keys, age_s = _read_stored(self._file.read_bytes(), self._settings.issuer)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as exc:
            log.warning(
                "stored token issuer keys not used",
                extra=fields(issuer=self._settings.id, error=str(exc)[:200]),
            )
            return
        self._fetched_s = monotonic_s() - age_s

    async def run(self, stop: asyncio.Event) -> None:
        """Fetch now and then, and when asked, until ``stop``."""
        while not stop.is_set():
            self._wake.clear()
            self._begun += 1
            self._good = await self._refresh()
            self._ended = self._begun
            done, self._round = self._round, asyncio.Event()
            done.set()
            again_s = _AGAIN_S if self.usable else _AGAIN_WITHOUT_KEYS_S
            await _first_of(
                stop, self._wake, timeout_s=self._settings.refresh_s if self._good
                else min(again_s, self._settings.refresh_s),
            )  # fmt: skip

    async def key(self, kid: str) -> PublicKey | None:
        """Return the key with that id; an unknown one is looked for by one fetch."""
        key = self._usable_key(kid)
        now = monotonic_s()
        if key is not None or self._unknown.get(kid, 0.0) > now:
            return key
        pending = self._ended < self._needed
        if not pending and now - self._asked_s >= self._settings.cool_down_s:
            self._asked_s, self._needed = now, self._begun + 1
            self._wake.set()
        elif not pending:
            return None
        needed = self._needed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                while key is None and self._ended < needed:
                    await self._round.wait()
                    key = self._usable_key(kid)
        if key is None and self._ended >= needed and self._good:
            self._remember_unknown(kid)
        return key

    def _usable_key(self, kid: str) -> PublicKey | None:
        return self._keys.get(kid) if self.usable else None

    def _remember_unknown(self, kid: str) -> None:
        # Longer than the cool-down, so that one client with an old token cannot use up every
        # turn; not much longer, as the issuer may have published the key a little late.
        while len(self._unknown) >= _UNKNOWN_LIMIT:
            del self._unknown[next(iter(self._unknown))]
        self._unknown[kid] = monotonic_s() + 2 * self._settings.cool_down_s

    async def _refresh(self) -> bool:
        try:
            body = await self._fetch()
            keys = _parse(body)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            metrics.JWKS_FETCHES.labels(self._settings.id, "failed").inc()
            log.warning(
                "token issuer keys not fetched",
                extra=fields(issuer=self._settings.id, error=f"{type(exc).__name__}: {exc}"[:200]),
            )
            return False
        metrics.JWKS_FETCHES.labels(self._settings.id, "good").inc()
        if keys.keys() != self._keys.keys():
            log.info("token issuer keys changed", extra=fields(issuer=self._settings.id))
        self._keys, self._fetched_s = keys, monotonic_s()
        try:
            await asyncio.to_thread(_keep, self._file, self._settings.issuer, body)
        except OSError as exc:
            log.warning("token issuer keys not stored", extra=fields(error=str(exc)))
        return True

    async def _fetch(self) -> bytes:
        async with (
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
                headers=_HEADERS,
                trust_env=False,
                auto_decompress=False,
            ) as session,
            session.get(self._settings.jwks_url, ssl=self._tls, allow_redirects=False) as answer,
        ):
            if answer.status != 200:  # noqa: PLR2004
                raise ValueError(f"HTTP status {answer.status}")
            body = bytearray()
            async for part in answer.content.iter_any():
                body += part
                if len(body) > _BODY_LIMIT:
                    raise ValueError(f"more than {_BODY_LIMIT} bytes")
            return bytes(body)


def public_key(entry: Mapping[str, Any]) -> PublicKey:
    """Return the public key of a JWK.

    Raises:
        ValueError: private, symmetric, malformed, or an RSA key that is too short.
    """
    kty = entry.get("kty")
    members = MEMBERS.get(kty) if isinstance(kty, str) else None
    if members is None or _PRIVATE & entry.keys():
        raise ValueError("not a public key")
    texts: dict[str, str | list[str]] = {}
    for name in (*members, "alg"):
        if isinstance(value := entry.get(name), str):
            texts[name] = value
        elif name in entry:
            raise ValueError("not a key")
    try:
        # Checked first: joserfc only warns of a short key.
        if kty == "RSA" and base64_to_int(str(texts["n"])).bit_length() < _MIN_RSA_BITS:
            raise ValueError("the RSA key is too short")
        key = import_key(texts)
        _ = key.raw_value
    except JOSE_ERRORS as exc:
        raise ValueError("not a key") from exc
    if not isinstance(key, (ECKey, OKPKey, RSAKey)):
        raise ValueError("not an asymmetric key")
    return key


def _parse(body: bytes) -> dict[str, PublicKey]:
    """Return the usable keys of a JWK set (RFC 7517); what is not one of ours is left out.

    Raises:
        ValueError: not a JWK set, or none of its keys can be used.
    """
    document = read_json(body)
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or len(entries) > _MAX_KEYS:
        raise ValueError("not a JWK set")
    keys: dict[str, PublicKey] = {}
    for entry in entries:
        if _for_signatures(entry):
            with contextlib.suppress(ValueError):
                keys.setdefault(entry["kid"], public_key(entry))
    if not keys:
        raise ValueError("no usable key in the set")
    return keys


def _for_signatures(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str):
        return False
    operations = entry.get("key_ops", ["verify"])
    return (
        entry.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations
    )


def _read_stored(octets: bytes, issuer: str) -> tuple[dict[str, PublicKey], float]:
    """Return keys and their age in seconds from a kept file.

    Raises:
        ValueError: damaged, or of another issuer, or from the future.
    """
    document = read_json(octets)
    if not isinstance(document, dict) or document.get("sha256") != _checksum(document):
        raise ValueError("the file is damaged")
    if document.get("issuer") != issuer:
        raise ValueError("the file is of another issuer")
    fetched, body = document.get("fetched_at"), document.get("body")
    if not isinstance(fetched, int) or not isinstance(body, str):
        raise ValueError("the file is damaged")
    age_s = unix_ms() / 1000 - fetched
    if age_s < -_FUTURE_S:
        raise ValueError("the file is from the future")
    return _parse(body.encode()), max(0.0, age_s)


def _keep(path: Path, issuer: str, body: bytes) -> None:
    document = {"issuer": issuer, "fetched_at": unix_ms() // 1000, "body": body.decode()}
    temporary = path.with_name("." + path.name)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(document | {"sha256": _checksum(document)}, file)
    temporary.replace(path)


def _checksum(document: Mapping[str, Any]) -> str:
    content = {name: value for name, value in document.items() if name != "sha256"}
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


async def _first_of(*events: asyncio.Event, timeout_s: float) -> None:
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiting:
            waiter.cancel()


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except OSError as exc:
        raise ConfigurationError(f"cannot read certificates from {ca_file}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
