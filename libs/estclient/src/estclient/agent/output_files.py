"""Outputs of an agent: its credential in the files and forms that a service reads.

Each file changes in one step; a file that already holds the credential stays as it is. The files
of one output change one after the other, key first, so a service reads them after the hook.
JKS has a random salt and no reader here, so a digest beside it says which credential it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from cryptography import x509

from estclient.agent.bundle import Bundle, served, unverified_chain
from estclient.agent.generation_files import to_pem, write_file
from estclient.agent.keystore import (
    check_password,
    holds,
    jks_store,
    pkcs12_store,
    trust_store,
    trusts,
)
from estclient.agent.output_settings import OutputSettings
from estclient.agent.placed_file import Access, place_file, read_placed, remove_placed
from estclient.est.keys import key_pem
from estclient.est.trust_anchors import is_root
from estcore.runtime.secret_files import read_secret

SUFFIX = ".previous"


class Outputs:
    """All outputs of one definition; ``store`` is the folder of its generations."""

    def __init__(self, settings: Sequence[OutputSettings], store: Path) -> None:
        self._settings = settings
        self._store = store

    async def write(self, bundle: Bundle, previous: Bundle | None) -> list[Path]:
        """Write what is not there yet; returns the files that changed.

        ``previous`` is the credential before, while it is valid.

        Raises:
            OutputFailed: a place, an owner or a key store that cannot be used.
            ConfigurationError: the password cannot be read.
            OSError: a file cannot be written.
        """
        changed: list[Path] = []
        for output in self._settings:
            changed += await self._write(output, bundle, "")
            if not output.previous:
                continue
            if previous is not None:
                changed += await self._write(output, previous, SUFFIX)
            else:
                files = [_named(file, SUFFIX) for file in output.files]
                changed += [file for file in files if remove_placed(file, output.owner)]
        return changed

    async def _write(self, output: OutputSettings, bundle: Bundle, suffix: str) -> list[Path]:
        if output.format == "jks":
            return await self._write_jks(output, bundle, suffix)
        changed = []
        for file, octets, access in _files(output, bundle, suffix):
            if not _is_current(output, file, bundle, octets, access):
                place_file(file, octets, access)
                changed.append(file)
        return changed

    async def _write_jks(self, output: OutputSettings, bundle: Bundle, suffix: str) -> list[Path]:
        if output.path is None:
            return []
        file, access, password = _named(output.path, suffix), _access(output), _password(output)
        chain = chain_of(output, bundle)
        note = self._store / f".{sha256(str(file).encode()).hexdigest()[:16]}.jks"
        written = read_placed(file, access)
        mark = _mark(written or b"", password, chain)
        if written is not None and note.exists() and note.read_text(encoding="ascii") == mark:
            return []
        store = await jks_store(pkcs12_store(bundle, chain, password, output.alias), password)
        place_file(file, store, access)
        write_file(note, _mark(store, password, chain).encode(), 0o600)
        return [file]


def chain_of(output: OutputSettings, bundle: Bundle) -> list[x509.Certificate]:
    """Return the certificates that an output holds, the service's own first."""
    whole = unverified_chain(bundle)
    if not output.chain:
        return [bundle.certificate]
    chain = served(whole, bundle)
    return [*chain, whole[-1]] if output.root and is_root(whole[-1]) else chain


def _files(output: OutputSettings, bundle: Bundle, suffix: str) -> list[tuple[Path, bytes, Access]]:
    chain, access = chain_of(output, bundle), _access(output)
    public = Access(output.public_mode_bits, output.owner, output.group)
    key = key_pem(bundle.key)
    found: list[tuple[Path | None, bytes, Access]]
    match output.format:
        case "pem":
            found = [
                (output.key, key, access),
                (output.certificate, to_pem(chain), public),
                (output.ca, to_pem(bundle.authorities), public),
            ]
        case "combined-pem":
            found = [(output.path, to_pem(chain) + key, access)]
        case "pkcs12":
            store = pkcs12_store(bundle, chain, _password(output), output.alias)
            found = [(output.path, store, access)]
        case _:
            store = trust_store(_roots(bundle), _password(output))
            found = [(output.path, store, access)]
    return [(_named(file, suffix), octets, mode) for file, octets, mode in found if file]


def _is_current(
    output: OutputSettings, file: Path, bundle: Bundle, octets: bytes, access: Access
) -> bool:
    written = read_placed(file, access)
    if written is None:
        return False
    match output.format:
        case "pkcs12":
            return holds(written, _password(output), bundle, chain_of(output, bundle))
        case "pkcs12-truststore":
            return trusts(written, _password(output), _roots(bundle))
        case _:
            return written == octets


def _roots(bundle: Bundle) -> list[x509.Certificate]:
    return [c for c in bundle.authorities if is_root(c)]


def _access(output: OutputSettings) -> Access:
    return Access(output.mode_bits, output.owner, output.group)


def _password(output: OutputSettings) -> bytes:
    if output.password_file is None:
        return b""
    password = read_secret(output.password_file, "the password of the key store").encode()
    check_password(password)
    return password


def _mark(store: bytes, password: bytes, chain: Sequence[x509.Certificate]) -> str:
    digest = sha256(sha256(store).digest() + sha256(password).digest())
    digest.update(to_pem(chain))
    return digest.hexdigest()


def _named(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix) if suffix else file
