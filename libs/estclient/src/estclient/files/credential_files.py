"""A certificate and its key as two files, and their replacement so that a crash loses neither.

A renewal keeps what it has until both new files are complete:

1. ``KEY.new``: the new key, kept from the first attempt on; a repetition is the same request.
2. ``CERTIFICATE.new``: the new chain.
3. ``KEY.new`` becomes ``KEY``, then ``CERTIFICATE.new`` becomes ``CERTIFICATE``.

``resume`` finishes step 3 where a crash came between.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.errors import BundleInvalid
from estclient.est.keys import AnyKey, PrivateKey, key_pem, load_key, make_key
from estcore.errors import ConfigurationError
from estcore.pki.keys import spki_der
from estcore.pki.profile import KeyAlgorithm
from estcore.runtime.secret_files import read_secret_octets

_KEY_MODE, _CERTIFICATE_MODE = 0o600, 0o644


@dataclass(frozen=True)
class CredentialFiles:
    """Where a certificate chain and its key are."""

    certificate: Path
    key: Path

    @property
    def new_certificate(self) -> Path:
        """The chain of a renewal under way."""
        return self.certificate.with_name(f"{self.certificate.name}.new")

    @property
    def new_key(self) -> Path:
        """The key of a renewal under way."""
        return self.key.with_name(f"{self.key.name}.new")

    def resume(self) -> bool:
        """Finish a replacement that was interrupted; returns whether there was one.

        Raises:
            ConfigurationError: a file cannot be read or renamed.
        """
        if not self.new_certificate.exists():
            return False
        certificate = read_chain(self.new_certificate)[0]
        for file in (self.new_key, self.key):
            if file.exists() and is_key_of(read_key(file), certificate):
                self._replace(file)
                return True
        return False

    def store(self, chain: Sequence[x509.Certificate]) -> None:
        """Replace certificate and key by a new chain and ``KEY.new``.

        Raises:
            ConfigurationError: a file cannot be written.
        """
        write_chain(self.new_certificate, chain)
        self._replace(self.new_key)

    def _replace(self, key: Path) -> None:
        try:
            if key != self.key:
                key.replace(self.key)
            self.new_certificate.replace(self.certificate)
        except OSError as exc:
            raise ConfigurationError(f"cannot replace {self.key}: {exc.strerror}") from exc


def key_in(file: Path, algorithm: KeyAlgorithm) -> tuple[PrivateKey, bool]:
    """Return the key of a file and False, or a new one that is stored there and True.

    Raises:
        ConfigurationError: the file cannot be read or made, or others may read it.
    """
    if file.exists():
        return read_key(file), False
    key = make_key(algorithm)
    _write(file, key_pem(key), _KEY_MODE)
    return key, True


def write_key(file: Path, key: AnyKey) -> None:
    """Write a private key as PEM, in one step, for its owner alone.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    _write(file, key_pem(key), _KEY_MODE)


def read_key(file: Path) -> PrivateKey:
    """Return the key of a PEM file that its owner alone may read.

    Raises:
        ConfigurationError: the file cannot be used.
    """
    try:
        return load_key(read_secret_octets(file, "the private key"))
    except BundleInvalid as exc:
        raise ConfigurationError(f"{file}: {exc.reason}") from exc


def read_chain(file: Path) -> list[x509.Certificate]:
    """Return the certificates of a PEM file, in its order.

    Raises:
        ConfigurationError: unreadable, or without a certificate.
    """
    try:
        return x509.load_pem_x509_certificates(file.read_bytes())
    except OSError as exc:
        raise ConfigurationError(f"cannot read {file}: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigurationError(f"{file} has no certificate in PEM") from exc


def write_chain(file: Path, chain: Sequence[x509.Certificate]) -> None:
    """Write certificates as PEM, in one step.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
    _write(file, pem, _CERTIFICATE_MODE)


def write_request(file: Path, csr: bytes) -> None:
    """Write a certification request (DER) as PEM.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    _write(file, x509.load_der_x509_csr(csr).public_bytes(Encoding.PEM), _CERTIFICATE_MODE)


def is_key_of(key: PrivateKey, certificate: x509.Certificate) -> bool:
    """Return whether a certificate is for a key."""
    return spki_der(key.public_key()) == spki_der(certificate.public_key())


def _write(file: Path, octets: bytes, mode: int) -> None:
    """Write a whole file or none: at first beside it, then under its name."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as writer:
            writer.write(octets)
            writer.flush()
            os.fsync(descriptor)
        partial.replace(file)
    except OSError as exc:
        partial.unlink(missing_ok=True)
        raise ConfigurationError(f"cannot write {file}: {exc.strerror}") from exc
