"""The public keys of one token issuer, through rotation, attack and outage.

Fetched in the background; the last good set stays while the issuer is away, on disk too. A key
id nobody knows causes one fetch for all who wait, at most once per cool-down, so a flood of
invented ids costs the issuer nothing. Keys that left the set are gone at the next fetch.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey, import_key

from est_frontend import metrics
from est_frontend.tokens.settings import TokenIssuerSettings
from estcore.clock import monotonic_s, unix_ms
from estcore.errors import ConfigurationError
from estcore.runtime.logs import fields
from estcore.runtime.service import until

log = logging.getLogger(__name__)

PublicKey = ECKey | OKPKey | RSAKey
_BODY_LIMIT = 262_144
_TIMEOUT_S = 3.0
_MAX_KEYS = 64
_UNKNOWN_LIMIT = 1024
_MIN_RSA_BITS = 2048


class KeySource:
    """Keys by their id (kid)."""

    def __init__(self, settings: TokenIssuerSettings, folder: Path) -> None:
        self._settings = settings
        self._file = folder / f"jwks.{settings.id}.json"
        self._keys: dict[str, PublicKey] = {}
        self._fetched = 0.0
        self._tried = -settings.cool_down_s
        self._unknown: dict[str, float] = {}
        self._fetching: asyncio.Task[bool] | None = None
        self._tls = _tls(settings.ca_file)

    @property
    def ready(self) -> bool:
        """There are keys that may still be believed."""
        return bool(self._keys) and monotonic_s() - self._fetched < self._settings.keep_s

    def load(self) -> None:
        """Read what an earlier run kept; a damaged file is as good as none."""
        try:
            kept = json.loads(self._file.read_bytes())
            body = kept["body"].encode()
            if hashlib.sha256(body).hexdigest() != kept["sha256"]:
                raise ValueError("damaged")
            if kept["issuer"] != self._settings.issuer:
                raise ValueError("of another issuer")
            self._keys = _parse(body)
            age = max(0.0, unix_ms() / 1000 - float(kept["fetched_at"]))
            self._fetched = monotonic_s() - age
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            log.warning(
                "kept keys not used", extra=fields(issuer=self._settings.id, error=str(exc)[:200])
            )

    async def run(self, stop: asyncio.Event) -> None:
        """Fetch now and then until ``stop``."""
        wait = 0.0
        while not await until(stop, wait):
            good = await self._refresh()
            wait = self._settings.refresh_s if good else min(5.0, self._settings.refresh_s)

    async def key(self, kid: str) -> PublicKey | None:
        """Return the key with that id; an unknown one is looked for once."""
        if not self.ready:
            await self._refresh_once()
        found = self._keys.get(kid) if self.ready else None
        if found is not None:
            return found
        now = monotonic_s()
        if self._unknown.get(kid, 0.0) > now:
            return None
        if now - self._tried >= self._settings.cool_down_s or self._fetching is not None:
            await self._refresh_once()
            found = self._keys.get(kid) if self.ready else None
        if found is None:
            if len(self._unknown) >= _UNKNOWN_LIMIT:
                self._unknown.pop(next(iter(self._unknown)))
            self._unknown[kid] = now + self._settings.cool_down_s
        return found

    async def _refresh_once(self) -> None:
        """Join the fetch under way, or start one unless that was tried just now."""
        if self._fetching is None:
            if monotonic_s() - self._tried < min(1.0, self._settings.cool_down_s):
                return
            self._fetching = asyncio.ensure_future(self._refresh())
        task = self._fetching
        try:
            await asyncio.shield(task)
        finally:
            if task.done():
                self._fetching = None

    async def _refresh(self) -> bool:
        self._tried = monotonic_s()
        try:
            body = await self._fetch()
            keys = _parse(body)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            metrics.JWKS_FETCHES.labels(self._settings.id, "failed").inc()
            log.warning(
                "keys of a token issuer not fetched",
                extra=fields(issuer=self._settings.id, error=f"{type(exc).__name__}: {exc}"[:200]),
            )
            return False
        metrics.JWKS_FETCHES.labels(self._settings.id, "good").inc()
        if keys.keys() != self._keys.keys():
            log.info("keys of a token issuer changed", extra=fields(issuer=self._settings.id))
        self._keys, self._fetched = keys, monotonic_s()
        self._unknown = {kid: end for kid, end in self._unknown.items() if kid not in keys}
        await asyncio.to_thread(self._keep, body)
        return True

    async def _fetch(self) -> bytes:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
            session.get(self._settings.jwks_url, ssl=self._tls, allow_redirects=False) as answer,
        ):
            if answer.status != 200:  # noqa: PLR2004
                raise ValueError(f"HTTP status {answer.status}")
            body = await answer.content.read(_BODY_LIMIT + 1)
            if len(body) > _BODY_LIMIT:
                raise ValueError(f"more than {_BODY_LIMIT} bytes")
            while not answer.content.at_eof():
                body += await answer.content.read(_BODY_LIMIT + 1 - len(body))
                if len(body) > _BODY_LIMIT:
                    raise ValueError(f"more than {_BODY_LIMIT} bytes")
            return body

    def _keep(self, body: bytes) -> None:
        kept = {
            "issuer": self._settings.issuer,
            "fetched_at": unix_ms() / 1000,
            "sha256": hashlib.sha256(body).hexdigest(),
            "body": body.decode(),
        }
        temporary = self._file.with_suffix(".tmp")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(kept, file)
            temporary.replace(self._file)
        except OSError as exc:
            log.warning("keys not kept on disk", extra=fields(error=str(exc)))


def _parse(body: bytes) -> dict[str, PublicKey]:
    """Return the usable keys of a JWK set (RFC 7517); what is not one of ours is left out.

    Raises:
        ValueError: not a JWK set, or none of its keys can be used.
    """
    document = json.loads(body)
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or len(entries) > _MAX_KEYS:
        raise ValueError("not a JWK set")
    found: dict[str, PublicKey] = {}
    for entry in entries:
        key = _usable(entry)
        if key is not None:
            found[str(entry["kid"])] = key
    if not found:
        raise ValueError("no usable key in the set")
    return found


def _usable(entry: Any) -> PublicKey | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    if entry.get("kty") not in {"RSA", "EC", "OKP"} or not isinstance(entry.get("kid"), str):
        return None
    try:
        key = public_key(entry)
    except ValueError:
        return None
    return key


def public_key(entry: Mapping[str, Any]) -> PublicKey:
    """Return the public key of a JWK.

    Raises:
        ValueError: private, symmetric, malformed, or an RSA key that is too short.
    """
    if "d" in entry or entry.get("kty") not in {"RSA", "EC", "OKP"}:
        raise ValueError("not a public key")
    try:
        key = import_key(dict(entry))
        raw = key.raw_value
    except (JoseError, ValueError, TypeError, KeyError) as exc:
        raise ValueError("not a key") from exc
    if not isinstance(key, (ECKey, OKPKey, RSAKey)):
        raise ValueError("not an asymmetric key")  # noqa: TRY004 - a value of the document
    if isinstance(key, RSAKey) and getattr(raw, "key_size", 0) < _MIN_RSA_BITS:
        raise ValueError("the RSA key is too short")
    return key


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigurationError(f"cannot read certificates from {ca_file}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
