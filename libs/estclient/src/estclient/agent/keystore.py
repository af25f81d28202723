"""Key stores of a credential: PKCS#12 (RFC 7292), a trust store for Java, and JKS.

No maintained Python library writes JKS, and Java reads PKCS#12 since version 8, also where the
type says JKS. So JKS is made by ``keytool``, which every Java has; passwords reach it in files.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

from estclient.agent.bundle import Bundle
from estclient.errors import OutputFailed
from estclient.est.keys import PrivateKey
from estclient.est.token_key import TokenKey
from estcore.pki.keys import spki_der
from estcore.pki.names import display_name

_TIMEOUT_S = 60
_SHORTEST = 6


def pkcs12_store(
    bundle: Bundle, chain: Sequence[x509.Certificate], password: bytes, alias: str
) -> bytes:
    """Return a PKCS#12 store with the key, its certificate and what follows it in the chain.

    Raises:
        OutputFailed: the key is in a token.
    """
    if isinstance(bundle.key, TokenKey):
        raise OutputFailed("a key in a token is in no key store")
    return pkcs12.serialize_key_and_certificates(
        alias.encode(),
        bundle.key,
        bundle.certificate,
        list(chain[1:]),
        BestAvailableEncryption(password),
    )


def trust_store(authorities: Sequence[x509.Certificate], password: bytes) -> bytes:
    """Return a PKCS#12 store of CA certificates that Java takes as trust anchors."""
    named = [
        pkcs12.PKCS12Certificate(c, f"{display_name(c.subject)} {n}".encode()[:120])
        for n, c in enumerate(authorities, 1)
    ]
    return pkcs12.serialize_java_truststore(named, BestAvailableEncryption(password))


def holds(store: bytes, password: bytes, bundle: Bundle, chain: Sequence[x509.Certificate]) -> bool:
    """Return whether a PKCS#12 store holds this credential and this chain."""
    try:
        loaded = pkcs12.load_pkcs12(store, password)
    except ValueError:
        return False
    key, certificate = loaded.key, loaded.cert
    return (
        isinstance(key, PrivateKey)
        and certificate is not None
        and spki_der(key.public_key()) == spki_der(bundle.key.public_key())
        and certificate.certificate == bundle.certificate
        and {c.certificate for c in loaded.additional_certs} == set(chain[1:])
    )


def trusts(store: bytes, password: bytes, authorities: Sequence[x509.Certificate]) -> bool:
    """Return whether a PKCS#12 store holds exactly these CA certificates."""
    try:
        loaded = pkcs12.load_pkcs12(store, password)
    except ValueError:
        return False
    return {c.certificate for c in loaded.additional_certs} == set(authorities)


async def jks_store(pkcs12_octets: bytes, password: bytes) -> bytes:
    """Return the credential of a PKCS#12 store as JKS.

    Raises:
        OutputFailed: ``keytool`` is not installed, or refuses (``agent.keytool``).
    """
    check_password(password)
    with tempfile.TemporaryDirectory(prefix="estctl-") as folder:  # mode 0700
        source, secret, target = (Path(folder) / name for name in ("p12", "password", "jks"))
        for file, octets in ((source, pkcs12_octets), (secret, password)):
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(octets)
        await _keytool(
            *("-importkeystore", "-noprompt", "-srcstoretype", "PKCS12", "-deststoretype", "JKS"),
            *("-srckeystore", str(source), "-srcstorepass:file", str(secret)),
            *("-destkeystore", str(target), "-deststorepass:file", str(secret)),
        )
        return target.read_bytes()


def check_password(password: bytes) -> None:
    """Refuse a password that no key store takes.

    Raises:
        OutputFailed: shorter than keytool accepts.
    """
    if len(password) < _SHORTEST:
        raise OutputFailed(
            f"the password of a key store has {_SHORTEST} characters or more",
            code="agent.keystore_password",
        )


async def _keytool(*arguments: str) -> None:
    command = shutil.which("keytool")
    if command is None:
        raise OutputFailed(
            "keytool is not installed: install Java, or use the format pkcs12, which Java reads",
            code="agent.keytool",
        )
    process = await asyncio.create_subprocess_exec(
        command, *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError as exc:
        process.kill()
        await process.wait()
        raise OutputFailed("keytool did not end in time", code="agent.keytool") from exc
    if process.returncode != 0:
        text = " ".join(output.decode("utf-8", "replace").split())[:200]
        raise OutputFailed(f"keytool failed: {text}", code="agent.keytool")
