"""Plug-in for the PKI secrets engine of HashiCorp Vault or OpenBao, by its HTTP API.

``POST /v1/<mount>/sign/<role>`` is the default: the role is a second limit that a compromised
ca-signer-upstream cannot lift. It takes CN, SAN and key from the CSR and the rest from the role.
``verbatim: true`` calls ``sign-verbatim``, which takes the whole subject and the usages we send;
then Vault checks nothing itself.

No request may be repeated: the same CSR twice is two certificates. So 500 and a lost response are
unknown; 503 (sealed, standby) and 429 mean that nothing was done.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from pydantic import Field

from ca_signer.upstream.plugin import (
    Refused,
    Retryable,
    Submitted,
    Unknown,
    Upstream,
    Wanted,
)
from ca_signer.upstream.plugins.https import Answer, HTTPSettings, HTTPSPlugin, Transport
from ca_signer.upstream.plugins.options import read_options
from ca_signer.upstream.plugins.vault_auth import DENIED, Login, VaultAuth, errors_in
from estcore.errors import MalformedRequest
from estcore.pki.csr import CertificationRequest, parse_csr
from estcore.pki.parsers import READING_ERRORS, load_certificate, load_pem_certificates
from estcore.pki.pem import pem_text
from estcore.runtime.settings import read_secret

_PATH = r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$"
_OK, _FORBIDDEN = 200, 403
_LATER = {412, 429, 472, 473, 503}
_UNREADABLE = "upstream.unreadable"
_USAGES = {
    "digital_signature": "DigitalSignature",
    "content_commitment": "ContentCommitment",
    "key_encipherment": "KeyEncipherment",
    "key_agreement": "KeyAgreement",
}
_PURPOSES = {
    ExtendedKeyUsageOID.SERVER_AUTH: "ServerAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "ClientAuth",
}


class VaultOptions(HTTPSettings):
    """``options`` of the plug-in ``vault``."""

    mount: str = Field(default="pki", pattern=_PATH, description="where the engine is mounted")
    role: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", description="role of the engine")
    issuer_ref: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="one issuer of the mount; default: the role's",
    )
    verbatim: bool = Field(
        default=False,
        description="call `sign-verbatim`: the whole subject, usages as the profile says; the "
        "role limits only how long",
    )
    namespace: str | None = Field(default=None, pattern=_PATH, description="namespace, if any")
    auth: VaultAuth


def make(options: dict[str, Any], *, timeout_s: float) -> Upstream:
    """Return the plug-in.

    Raises:
        ConfigurationError: an option or a file is not good.
    """
    return VaultUpstream(read_options(VaultOptions, options, "vault"), timeout_s=timeout_s)


class VaultUpstream(HTTPSPlugin):
    """One role of one PKI mount."""

    repeatable_s = 0.0
    can_revoke = True

    def __init__(self, options: VaultOptions, *, timeout_s: float) -> None:
        self._options = options
        self._headers = {"Content-Type": "application/json", "X-Vault-Request": "true"}
        if options.namespace is not None:
            self._headers["X-Vault-Namespace"] = options.namespace
        read_secret(options.auth.secret_file, "the secret for Vault")
        self._transport = Transport(options, timeout_s=timeout_s, fresh=True)
        self._login = Login(options.auth, self._transport, self._headers, timeout_s=timeout_s / 3)
        issuer = f"/issuer/{options.issuer_ref}" if options.issuer_ref else ""
        verb = "sign-verbatim" if options.verbatim else "sign"
        self._sign = f"/v1/{options.mount}{issuer}/{verb}/{options.role}"

    async def submit(self, request: Wanted) -> Submitted:
        """Have the CSR signed, for as long as was decided."""
        answer = await self._call(self._sign, self._question(request))
        if answer.status != _OK:
            raise _failed(answer)
        try:
            document = json.loads(answer.body)
            certificate = load_pem_certificates(document["data"]["certificate"].encode())[0]
        except READING_ERRORS as exc:
            raise Unknown("200 without a certificate", code=_UNREADABLE) from exc
        return Submitted(certificate, str(document.get("request_id", "")))

    def _question(self, request: Wanted) -> dict[str, Any]:
        csr = parse_csr(request.csr)
        body: dict[str, Any] = {
            "csr": pem_text("CERTIFICATE REQUEST", csr.der),
            "ttl": f"{int(request.lifetime.total_seconds())}s",
            "format": "pem",
        }
        if self._options.verbatim:
            return body | _usages(request.pattern)
        # A CN is no DNS name unless that was decided.
        body["exclude_cn_from_sans"] = not _named_by_common_name(request.pattern, csr)
        return body

    async def revoke(self, certificate: bytes, reason: str) -> None:
        """Revoke by the certificate itself: Vault checks that it is one of its own."""
        del reason  # Vault keeps none
        pem = pem_text("CERTIFICATE", certificate)
        answer = await self._call(f"/v1/{self._options.mount}/revoke", {"certificate": pem})
        if answer.status != _OK:
            raise _failed(answer)

    async def authorities(self) -> Sequence[x509.Certificate]:
        """Return the chain of the mount's default issuer, or of the one chosen."""
        answer = await self._transport.call(
            "GET", f"/v1/{self._options.mount}/ca_chain", headers=self._headers
        )
        if answer.status != _OK:
            raise Retryable(f"ca_chain answers {answer.status}")
        try:
            return [load_certificate(c) for c in load_pem_certificates(answer.body)]
        except MalformedRequest as exc:
            raise Unknown(f"ca_chain: {exc.reason}", code=_UNREADABLE) from exc

    async def _call(self, path: str, body: dict[str, Any]) -> Answer:
        """Ask; once more with a new token where the old one is refused, for nothing was done."""
        token = await self._login.token()
        answer = await self._send(path, body, token)
        if answer.status == _FORBIDDEN:
            fresh = await self._login.token(instead_of=token)
            if fresh != token:
                answer = await self._send(path, body, fresh)
        return answer

    async def _send(self, path: str, body: dict[str, Any], token: str) -> Answer:
        headers = self._headers | {"X-Vault-Token": token}
        return await self._transport.call(
            "POST", path, body=json.dumps(body).encode(), headers=headers
        )


def _usages(pattern: x509.Certificate) -> dict[str, Any]:
    usage = pattern.extensions.get_extension_for_class(x509.KeyUsage).value
    purposes = pattern.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    return {
        "key_usage": [text for name, text in _USAGES.items() if getattr(usage, name)],
        "ext_key_usage": [_PURPOSES[oid] for oid in purposes if oid in _PURPOSES],
        "ext_key_usage_oids": [o.dotted_string for o in purposes if o not in _PURPOSES],
    }


def _named_by_common_name(pattern: x509.Certificate, request: CertificationRequest) -> bool:
    """Whether the SAN decided is the CN's, the request having none."""
    if request.san_extension is not None:
        return False
    try:
        pattern.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return False
    return True


def _failed(answer: Answer) -> Refused | Retryable | Unknown:
    status = answer.status
    text = errors_in(answer.body)
    reason = f"Vault answers {status}" + (f": {text}" if text else "")
    if status in _LATER:
        return Retryable(reason, retry_after_s=answer.retry_after_s(2))
    if status in {401, _FORBIDDEN, 404, 405} or status in range(300, 400):
        return Retryable(reason, code=DENIED, retry_after_s=30)
    if status in range(400, 500):
        return Refused(reason)
    return Unknown(reason, code="upstream.broken")
