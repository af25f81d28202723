"""Credentials in a folder: every generation in a place of its own, one symlink says which counts.

    <folder>/current -> generations/0002-1f3a…
    <folder>/generations/0002-1f3a…/{cert.pem,key.pem,ca.pem,bundle.json}
    <folder>/pending/{key.pem,csr.der,bundle.json}
    <folder>/server-roots.pem

``cert.pem`` holds the certificate, its intermediates and, during a rollover, what links its root
to another one; ``ca.pem`` every CA certificate. They change without a new generation when those do.
A generation is written beside, verified, flushed to disk, and only then does ``current`` move,
atomically; a reader sees the old or the new bundle, never half of one. ``pending`` keeps the
key of a request under way, so that a repeated request is the same request.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.errors import BundleInvalid
from estclient.est.keys import PrivateKey, key_pem, load_key
from estclient.est.trust_anchors import is_issued_by, is_of_key, is_root, is_valid
from estcore.ids import serial_hex
from estcore.pki.keys import spki_der

_LONGEST_CHAIN = 8
_KEEP = 3
"""Generations kept on disk; older ones are removed."""


@dataclass(frozen=True)
class Bundle:
    """A certificate with its key and the CA certificates it came with."""

    certificate: x509.Certificate
    key: PrivateKey
    authorities: tuple[x509.Certificate, ...]
    rotation_id: str | None = None
    in_use: bool = True
    proven: bool = True
    folder: Path | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, hexadecimal."""
        return sha256(self.certificate.public_bytes(Encoding.DER)).hexdigest()

    @property
    def serial(self) -> str:
        """The serial number, hexadecimal."""
        return serial_hex(self.certificate.serial_number)

    @property
    def files(self) -> tuple[Path, Path]:
        """Certificate chain and key as files.

        Raises:
            BundleInvalid: the bundle is not stored.
        """
        if self.folder is None:
            raise BundleInvalid("the bundle is not stored")
        return self.folder / "cert.pem", self.folder / "key.pem"


@dataclass(frozen=True)
class Pending:
    """A request under way: its key, its CSR, and the certificate it renews."""

    key: PrivateKey
    csr: bytes
    predecessor: str


def verify_bundle(bundle: Bundle, *, now: dt.datetime) -> list[x509.Certificate]:
    """Return the chain from the certificate to a self-signed CA certificate of the bundle.

    Checks key, signatures, names and validity of every link. Whether the CA is trusted was
    decided where its certificates came from.

    Raises:
        BundleInvalid: the first thing that does not fit.
    """
    if spki_der(bundle.key.public_key()) != spki_der(bundle.certificate.public_key()):
        raise BundleInvalid("the certificate is for another key", code="bundle.key")
    chain = [bundle.certificate]
    while True:
        last = chain[-1]
        if not is_valid(last, now):
            raise BundleInvalid(f"{last.subject.rfc4514_string()} is not valid now")
        if is_root(last):
            return chain
        if len(chain) == _LONGEST_CHAIN:
            raise BundleInvalid("the chain is too long", code="bundle.chain")
        chain.append(_issuer(last, bundle.authorities, chain, now))


def _issuer(
    certificate: x509.Certificate,
    authorities: Sequence[x509.Certificate],
    below: Sequence[x509.Certificate],
    now: dt.datetime,
) -> x509.Certificate:
    """Return who issued it: of now rather than not, a root rather than what links to another."""
    issuers = [c for c in authorities if c not in below and is_issued_by(certificate, c)]
    if not issuers:
        name = certificate.issuer.rfc4514_string()
        raise BundleInvalid(f"no certificate of the issuer {name}", code="bundle.chain")
    return min(issuers, key=lambda c: (not is_valid(c, now), not is_root(c)))


def _served(chain: Sequence[x509.Certificate], bundle: Bundle) -> list[x509.Certificate]:
    """Return what the service sends: no root, but what links it to another root."""
    root = chain[-1]
    cross = [c for c in bundle.authorities if is_of_key(c, root) and not is_root(c)]
    return [*chain[:-1], *cross] if len(chain) > 1 else [*chain, *cross]


class CredentialStore:
    """The credentials of one service in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._generations = folder / "generations"
        self._pending = folder / "pending"
        self._server_roots = folder / "server-roots.pem"
        self.current = folder / "current"

    def load(self) -> Bundle | None:
        """Return the bundle in use; None before the first enrollment.

        Raises:
            BundleInvalid: the files cannot be read.
        """
        if not self.current.exists():
            return None
        folder = self.current.resolve()
        try:
            facts = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
            certificates = x509.load_pem_x509_certificates((folder / "cert.pem").read_bytes())
            authorities = x509.load_pem_x509_certificates((folder / "ca.pem").read_bytes())
            key = load_key((folder / "key.pem").read_bytes())
        except (OSError, ValueError) as exc:
            raise BundleInvalid(f"the credential in {folder} cannot be read") from exc
        return Bundle(
            certificate=certificates[0],
            key=key,
            authorities=tuple(authorities),
            rotation_id=facts.get("rotation_id"),
            in_use=bool(facts.get("in_use")),
            proven=bool(facts.get("proven")),
            folder=folder,
        )

    def save(self, bundle: Bundle, *, now: dt.datetime) -> Bundle:
        """Verify the bundle, write it beside the others, make it current; returns it stored.

        Raises:
            BundleInvalid: it does not fit together; nothing changed.
        """
        chain = verify_bundle(bundle, now=now)
        name = f"{self._next_number():04}-{bundle.fingerprint[:16]}"
        target = self._generations / name
        made = self._generations / f".{name}"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(mode=0o700, parents=True)
        _write(made / "cert.pem", _pem(_served(chain, bundle)), 0o644)
        _write(made / "ca.pem", _pem(bundle.authorities), 0o644)
        _write(made / "key.pem", key_pem(bundle.key), 0o600)
        _write(made / "bundle.json", _facts(bundle), 0o600)
        _flush(made)
        made.replace(target)
        self._point_to(target)
        shutil.rmtree(self._pending, ignore_errors=True)
        self._clean_up(target)
        stored = self.load()
        assert stored is not None  # noqa: S101 - just written
        return stored

    def replace_authorities(
        self, bundle: Bundle, authorities: Sequence[x509.Certificate], *, now: dt.datetime
    ) -> Bundle:
        """Put other CA certificates beside a stored certificate; returns the bundle, not in use.

        Raises:
            BundleInvalid: the certificate does not chain to them; nothing changed.
        """
        changed = replace(bundle, authorities=tuple(authorities), in_use=False)
        chain = verify_bundle(changed, now=now)
        # First what makes the service reload: a crash in between may only reload in vain.
        self.note(changed)
        folder = changed.folder or self.current
        for name, certificates in (("cert", _served(chain, changed)), ("ca", authorities)):
            _write(folder / f".{name}.pem", _pem(certificates), 0o644)
            (folder / f".{name}.pem").replace(folder / f"{name}.pem")
        _flush(folder)
        return changed

    def server_roots(self) -> tuple[x509.Certificate, ...]:
        """Return roots that lead on from those given for the server.

        Raises:
            BundleInvalid: the file cannot be read.
        """
        try:
            octets = self._server_roots.read_bytes()
            return tuple(x509.load_pem_x509_certificates(octets))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError) as exc:
            raise BundleInvalid(f"{self._server_roots} cannot be read") from exc

    def keep_server_roots(self, roots: Sequence[x509.Certificate]) -> None:
        """Keep these roots, and no others."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = self._server_roots.with_name(".server-roots.pem")
        _write(made, _pem(roots), 0o644)
        made.replace(self._server_roots)
        _flush(self._folder)

    def note(self, bundle: Bundle) -> None:
        """Write down how far the bundle's rotation has come.

        Raises:
            BundleInvalid: the bundle is not stored.
        """
        if bundle.folder is None:
            raise BundleInvalid("the bundle is not stored")
        made = bundle.folder / ".bundle.json"
        _write(made, _facts(bundle), 0o600)
        made.replace(bundle.folder / "bundle.json")
        _flush(bundle.folder)

    def pending(self, predecessor: str) -> Pending | None:
        """Return the request under way for the certificate with this fingerprint, if any."""
        try:
            facts = json.loads((self._pending / "bundle.json").read_text(encoding="utf-8"))
            key = load_key((self._pending / "key.pem").read_bytes())
            csr = (self._pending / "csr.der").read_bytes()
        except (OSError, ValueError, BundleInvalid):
            return None
        if facts.get("predecessor") != predecessor:
            return None
        return Pending(key, csr, predecessor)

    def begin(self, pending: Pending) -> None:
        """Keep a request before it is sent."""
        shutil.rmtree(self._pending, ignore_errors=True)
        self._pending.mkdir(mode=0o700, parents=True)
        _write(self._pending / "key.pem", key_pem(pending.key), 0o600)
        _write(self._pending / "csr.der", pending.csr, 0o600)
        facts = json.dumps({"predecessor": pending.predecessor}).encode()
        _write(self._pending / "bundle.json", facts, 0o600)
        _flush(self._pending)

    def forget(self) -> None:
        """Drop the request under way; the next one has a new key."""
        shutil.rmtree(self._pending, ignore_errors=True)

    def _next_number(self) -> int:
        self._generations.mkdir(mode=0o700, parents=True, exist_ok=True)
        numbers = [int(p.name.split("-")[0]) for p in self._stored()]
        return max(numbers, default=0) + 1

    def _stored(self) -> list[Path]:
        return sorted(p for p in self._generations.iterdir() if p.name[0].isdigit())

    def _point_to(self, target: Path) -> None:
        link = self._folder / ".current"
        link.unlink(missing_ok=True)
        link.symlink_to(target.relative_to(self._folder))
        link.replace(self.current)
        _flush(self._folder)

    def _clean_up(self, current: Path) -> None:
        for old in self._stored()[:-_KEEP]:
            if old != current:
                shutil.rmtree(old, ignore_errors=True)


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)


def _facts(bundle: Bundle) -> bytes:
    facts = {
        "serial": bundle.serial,
        "fingerprint_sha256": bundle.fingerprint,
        "not_after": bundle.certificate.not_valid_after_utc.isoformat(),
        "rotation_id": bundle.rotation_id,
        "in_use": bundle.in_use,
        "proven": bundle.proven,
    }
    return json.dumps(facts, indent=1).encode() + b"\n"


def _write(path: Path, octets: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
