"""Server-side key generation: keys exist in memory only and are returned to the client once.

Plain PKCS#8 inside TLS, or sealed for a key the client names: a shared secret of the
configuration, or the key of the certificate it presented. An unknown name is an error; a key
is never sent with less protection than was asked for (RFC 7030 section 4.4).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from est_frontend.auth.client_certificates import Peer
from estcore.errors import ConfigurationError, IssuerUnavailable, RequestRejected, Unavailable
from estcore.est.certs_only import certs_only
from estcore.est.cms.envelope import PackageSigner, ProtectingKey, seal
from estcore.est.keygen_response import KeygenResponse, encode_keygen_response
from estcore.est.serverkeygen import (
    GeneratedKey,
    KeygenRequest,
    KeyProtection,
    certification_request,
    generated_kind,
    new_key,
    pkcs8,
)
from estcore.est.transfer import WrittenForm
from estcore.pki.csr import CertificationRequest, parse_csr
from estcore.pki.profile import KeyAlgorithm, Profile, read_yaml
from estcore.runtime.secret_files import check_mode, read_secret_octets

_THREADS = max(1, (os.cpu_count() or 1) // 2)
_SECRET_SIZES = (16, 24, 32)


class KeyGenerator:
    """Makes keys and the answers that carry them."""

    def __init__(
        self,
        *,
        secrets: dict[bytes, bytes],
        certificate_file: Path,
        key_file: Path,
        most: int = 16,
        new_key: Callable[[KeyAlgorithm], GeneratedKey] = new_key,
    ) -> None:
        """``secrets`` by identifier; the server's TLS certificate signs sealed keys.

        RSA keys are made by threads of their own, half as many as there are cores: the default
        threads check passwords and write the spool.
        """
        self._secrets = secrets
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="keygen")
        self._under_way = 0
        self._most = most
        self._new_key = new_key
        self._files = (certificate_file, key_file)

    async def make(
        self, request: KeygenRequest, profile: Profile | None, peer: Peer | None
    ) -> tuple[GeneratedKey, CertificationRequest, ProtectingKey | None]:
        """Return a new key, a CSR by it, and what the key will be sealed for.

        Raises:
            RequestRejected: protection asked for that cannot be given.
            IssuerUnavailable: the profile is not known here yet.
            Unavailable: as many RSA keys as may be at once are being made (``keygen.busy``).
        """
        protecting = self._protecting(request.protection, peer) if request.protection else None
        if profile is None:
            raise IssuerUnavailable("the profile is not here yet", code="profile.unavailable")
        kind = generated_kind(request, profile)
        key = await self._rsa_key(kind) if kind.startswith("rsa") else self._new_key(kind)
        return key, parse_csr(certification_request(request, key)), protecting

    async def _rsa_key(self, kind: KeyAlgorithm) -> GeneratedKey:
        if self._under_way >= self._most:
            raise Unavailable("too many RSA keys are being made", code="keygen.busy")
        self._under_way += 1
        try:
            # A client that leaves gives up the wait, not the thread: it counts until it is done.
            made = self._threads.submit(self._new_key, kind)
        except RuntimeError as exc:
            self._under_way -= 1
            raise Unavailable("the process stops", code="keygen.busy") from exc
        loop = asyncio.get_running_loop()

        def done(_: Future[GeneratedKey]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended with the process
                loop.call_soon_threadsafe(self._done)

        made.add_done_callback(done)
        return await asyncio.wrap_future(made)

    def _done(self) -> None:
        self._under_way -= 1

    def answer(
        self,
        request: KeygenRequest,
        key: GeneratedKey,
        protecting: ProtectingKey | None,
        certificate: bytes,
        form: WrittenForm,
    ) -> bytes:
        """Return the body with the key and its certificate."""
        if request.protection is not None and protecting is not None:
            octets = seal(
                key, protection=request.protection, protecting_key=protecting, signer=self._signer()
            )
        else:
            octets = pkcs8(key)
        response = KeygenResponse(octets, protecting is not None, certs_only([certificate]))
        return encode_keygen_response(response, form)

    def _protecting(self, protection: KeyProtection, peer: Peer | None) -> ProtectingKey:
        unknown = RequestRejected(
            "the key to encrypt with is not known here", code="keygen.key_unknown"
        )
        if protection.symmetric:
            secret = self._secrets.get(protection.key_identifier)
            if secret is None:
                raise unknown
            return secret
        if peer is None or _key_identifier(peer.certificate) != protection.key_identifier:
            raise unknown
        key = peer.certificate.public_key()
        if not isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)):
            raise RequestRejected("the key named cannot encrypt", code="keygen.key_unusable")
        return key

    def _signer(self) -> PackageSigner:
        certificate_file, key_file = self._files
        try:
            certificate = x509.load_pem_x509_certificates(certificate_file.read_bytes())[0]
            key = load_pem_private_key(read_secret_octets(key_file, "the server's key"), None)
        except (OSError, ValueError) as exc:
            raise ConfigurationError("the server's certificate cannot be read") from exc
        if not isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
            raise ConfigurationError("the server's key cannot sign sealed keys")
        return PackageSigner(certificate, key)


def named_request(request: KeygenRequest) -> CertificationRequest:
    """Return a CSR with the names of the request, by a key that is in no certificate.

    It serves to check the names before a key is made.

    Raises:
        RequestRejected: what ``parse_csr`` refuses.
    """
    return parse_csr(certification_request(request, _KEY_FOR_NAMES))


_KEY_FOR_NAMES = ec.generate_private_key(ec.SECP256R1())


def load_secrets(path: Path | None) -> dict[bytes, bytes]:
    """Read shared secrets by identifier.

    Raises:
        ConfigurationError: not for its owner alone, or not a mapping of id to base64 of 16, 24
            or 32 octets.
    """
    if path is None:
        return {}
    check_mode(path, "the secrets that seal generated keys")
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{path}: a mapping of id to base64 is expected")
    secrets: dict[bytes, bytes] = {}
    for name, text in raw.items():
        try:
            secret = base64.b64decode(str(text), validate=True)
        except binascii.Error as exc:
            raise ConfigurationError(f"{path}: {name}: not base64") from exc
        if len(secret) not in _SECRET_SIZES:
            raise ConfigurationError(f"{path}: {name}: 16, 24 or 32 octets are needed")
        secrets[str(name).encode()] = secret
    return secrets


def _key_identifier(certificate: x509.Certificate) -> bytes | None:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        return None
    return extension.value.digest
