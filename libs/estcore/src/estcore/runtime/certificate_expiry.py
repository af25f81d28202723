"""Expiry of the certificates that a service itself uses, as metrics.

Settings name them: the service's own certificate, its CA certificates, trust anchors for NATS,
PostgreSQL, a SIEM. The files are read again every few minutes, so a replaced file is seen without
a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cryptography import x509
from prometheus_client import Gauge
from pydantic import BaseModel

from estcore.pki.parsers import PARSER_ERRORS
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)

_EVERY_S = 300.0
_OWN = ("certificate_file", "chain_file", "cross_file")
_TRUST = ("ca_file", "trust_file")
_NAMES = ("issuer_id", "name", "id")

NOT_AFTER = Gauge(
    "estsuite_certificate_not_after_seconds",
    "End of a certificate that the settings name, Unix time: the first to expire of a certificate "
    "with its chain, the last of a file of trust anchors",
    ["setting"],
)


def certificate_files(settings: BaseModel) -> dict[str, Path]:
    """Return the certificate files that settings name, by setting, such as ``bus.ca_file``.

    An entry of a list is named by its own name where it has one, otherwise by its place.
    """
    return dict(_walk(settings, ""))


def _walk(value: object, where: str) -> Iterator[tuple[str, Path]]:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _walk(getattr(value, name), f"{where}.{name}" if where else name)
    elif isinstance(value, Mapping):
        for key, member in value.items():
            yield from _walk(member, f"{where}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for place, member in enumerate(value):
            named = next((n for n in _NAMES if isinstance(getattr(member, n, None), str)), None)
            name = getattr(member, named) if named else str(place)
            yield from _walk(member, f"{where}.{name}")
    elif isinstance(value, Path) and where.endswith((*_OWN, *_TRUST)):
        yield where, value


class CertificateExpiry:
    """Keeps the metric of the certificates that a service's settings name."""

    def __init__(self, settings: BaseModel) -> None:
        self._files = certificate_files(settings)
        self._unreadable: set[str] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Read the files again and again until ``stop``."""
        while True:
            for setting, seconds in (await asyncio.to_thread(self._read)).items():
                self._note(setting, seconds)
            if await sleep_or_stop(stop, _EVERY_S):
                return

    def _read(self) -> dict[str, float | None]:
        return {setting: _not_after(setting, path) for setting, path in self._files.items()}

    def _note(self, setting: str, seconds: float | None) -> None:
        if seconds is not None:
            self._unreadable.discard(setting)
            NOT_AFTER.labels(setting).set(seconds)
        elif setting not in self._unreadable:
            # Nothing depends on it here: who uses the file reports what is wrong with it.
            self._unreadable.add(setting)
            NOT_AFTER.labels(setting).set(0)
            log.warning("certificate file cannot be read", extra=fields(setting=setting))


def _not_after(setting: str, path: Path) -> float | None:
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
        ends = [certificate.not_valid_after_utc.timestamp() for certificate in found]
    except OSError:
        return None
    except PARSER_ERRORS:
        return None
    return max(ends) if setting.endswith(_TRUST) else min(ends)
