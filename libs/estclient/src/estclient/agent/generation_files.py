"""The files of one generation of a credential: written whole, read whole or refused with a reason.

A crash of the file system or a full disk leaves files that are empty, short or of other octets.
``read_generation`` says which file is damaged and how. What cannot be read at the moment (no
permission, no file descriptor, an I/O error) is no damage: the operating system's error is raised.
``bundle.json`` only says how far a rotation has come, so without it the generation is usable: it
counts as not yet in use.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.agent.bundle import Bundle, Pending, check_key, check_links
from estclient.errors import BundleInvalid
from estclient.est.keys import key_pem, load_any_key
from estclient.est.trust_anchors import UNREADABLE, check_readable, is_root
from estcore.errors import in_words
from estcore.pki.keys import spki_der

T = TypeVar("T")
Damage = Callable[[Path, str], None]
"""Is called with a file and what is wrong with it."""

_GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_BROKEN: tuple[type[Exception], ...] = (*UNREADABLE, BundleInvalid)


class GenerationDamaged(BundleInvalid):
    """A generation that cannot be used; ``file`` is the first one that is damaged."""

    default_code = "bundle.damaged"

    def __init__(self, file: Path, what: str) -> None:
        super().__init__(f"{file} is damaged: {what}")
        self.file, self.what = file, what


def read_generation(folder: Path, damage: Damage) -> Bundle:
    """Return the bundle in a folder; ``damage`` receives what is wrong with its bundle.json.

    Raises:
        GenerationDamaged: a file that is needed is missing or is not what it was.
        OSError: a file cannot be read at the moment.
    """
    certificates = _read(folder / "cert.pem", read_certificates)
    authorities = _read(folder / "ca.pem", read_certificates)
    key = _read(folder / "key.pem", load_any_key)
    bundle = Bundle(certificates[0], key, tuple(authorities), in_use=False, proven=False)
    try:
        check_key(bundle)
    except _BROKEN as exc:
        raise GenerationDamaged(folder / "key.pem", _short(exc)) from exc
    roots = [c for c in authorities if is_root(c)]
    for name, others in (("cert.pem", certificates), ("ca.pem", authorities)):
        try:
            check_links(bundle.certificate, others, roots)
        except _BROKEN as exc:
            raise GenerationDamaged(folder / name, _short(exc)) from exc
    bundle = replace(bundle, folder=folder)
    try:
        return _read(folder / "bundle.json", lambda octets: _with_facts(bundle, octets))
    except GenerationDamaged as exc:
        damage(exc.file, exc.what)
        return bundle


def write_generation(folder: Path, bundle: Bundle, chain: Sequence[x509.Certificate]) -> None:
    """Write a bundle to a folder that is empty, and flush it to the disk.

    Raises:
        OSError: a file cannot be written; its name is in the error.
    """
    write_file(folder / "cert.pem", to_pem(chain), 0o644)
    write_file(folder / "ca.pem", to_pem(bundle.authorities), 0o644)
    write_file(folder / "key.pem", key_pem(bundle.key), 0o600)
    write_file(folder / "bundle.json", facts_json(bundle), 0o600)
    flush(folder)


def read_pending(folder: Path) -> Pending:
    """Return the request under way in a folder.

    Raises:
        GenerationDamaged: a file is missing or damaged, or CSR and key do not fit together.
        OSError: a file cannot be read at the moment.
    """
    facts = _read(folder / "bundle.json", _object)
    key = _read(folder / "key.pem", load_any_key)
    csr = _read(folder / "csr.der", lambda octets: octets)

    def predecessor(octets: bytes) -> str:
        if spki_der(x509.load_der_x509_csr(octets).public_key()) != spki_der(key.public_key()):
            raise ValueError("the request is for another key")
        return str(facts.get("predecessor", ""))

    return Pending(key, csr, _read(folder / "csr.der", predecessor))


def read_certificates(octets: bytes) -> list[x509.Certificate]:
    """Return the certificates of a PEM file, each readable to its end.

    Raises:
        ValueError: none, or one that cannot be read.
    """
    certificates = x509.load_pem_x509_certificates(octets)
    for certificate in certificates:
        check_readable(certificate)
    return certificates


def facts_json(bundle: Bundle) -> bytes:
    """Return the content of bundle.json."""
    facts = {
        "serial": bundle.serial,
        "fingerprint_sha256": bundle.fingerprint,
        "not_after": bundle.certificate.not_valid_after_utc.isoformat(),
        "rotation_id": bundle.rotation_id,
        "suggested_rotation": bundle.suggested_rotation,
        "in_use": bundle.in_use,
        "proven": bundle.proven,
        "is_first": bundle.is_first,
        "is_renewed": bundle.is_renewed,
    }
    return json.dumps(facts, indent=1).encode() + b"\n"


def to_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    """Return certificates as PEM."""
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)


def write_file(path: Path, octets: bytes, mode: int) -> None:
    """Write a new file and flush it to the disk.

    Raises:
        OSError: it cannot be written; the error names the file, also when the disk is full.
    """
    try:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(octets)
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        if exc.filename is not None:
            raise
        raise OSError(exc.errno, exc.strerror, str(path)) from exc


def flush(folder: Path) -> None:
    """Flush a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(file: Path, parse: Callable[[bytes], T]) -> T:
    try:
        octets = file.read_bytes()
    except _GONE as exc:
        raise GenerationDamaged(file, in_words(exc).partition(":")[0].lower()) from exc
    try:
        return parse(octets)
    except _BROKEN as exc:
        raise GenerationDamaged(file, "it is empty" if not octets else _short(exc)) from exc


def _object(octets: bytes) -> dict[str, Any]:
    facts = json.loads(octets)
    if not isinstance(facts, dict):
        raise TypeError("not a JSON object")
    return facts


def _with_facts(bundle: Bundle, octets: bytes) -> Bundle:
    facts = _object(octets)
    if facts.get("fingerprint_sha256", bundle.fingerprint) != bundle.fingerprint:
        raise ValueError("it is of another certificate")
    rotation_id, suggested = facts.get("rotation_id"), facts.get("suggested_rotation")
    return replace(
        bundle,
        rotation_id=rotation_id if isinstance(rotation_id, str) else None,
        suggested_rotation=suggested if isinstance(suggested, str) else None,
        in_use=facts.get("in_use") is True,
        proven=facts.get("proven") is True,
        is_first=facts.get("is_first") is True,
        is_renewed=facts.get("is_renewed") is True,
    )


def _short(exc: BaseException) -> str:
    text = exc.reason if isinstance(exc, BundleInvalid) else str(exc) or type(exc).__name__
    return " ".join(text.split())[:200]
