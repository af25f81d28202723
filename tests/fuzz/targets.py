"""What outsiders' octets reach, one function for each parser.

A target takes octets and returns; an ``ESTSuiteError`` is the documented answer to bad input, anything
else that is raised is a finding. ``SEEDS`` are good inputs from which mutation starts.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID

from audit import record_decoder
from ca_signer.recovery.ledger_check import read_event_ref
from est_frontend.auth.http_digest import DigestVerifier
from est_frontend.auth.password_file import PasswordFile
from est_frontend.auth.tokens import jws as token_jws
from est_frontend.auth.tokens.dpop import check_proof
from estclient.files.description import describe
from estcore import ids
from estcore.clock import SystemClock
from estcore.errors import ESTSuiteError
from estcore.est.certs_only import certs_only, read_certs_only
from estcore.est.csrattrs import parse_csrattrs
from estcore.est.keygen_response import parse_keygen_response
from estcore.est.paths import parse_path, parse_target
from estcore.est.renewal_info import RenewalInfo, parse_cert_id
from estcore.est.serverkeygen import read_keygen_request
from estcore.est.transfer import decode_request
from estcore.messages.audit import Actor, AuditBatch, AuditRecord, Producer
from estcore.messages.commands import read_command
from estcore.messages.enrollment import EnrollmentAnswered, EnrollmentRequested
from estcore.messages.envelope import decode, encode
from estcore.messages.events import CertificateIssued, CertificateRevoked, WindowClosed
from estcore.messages.joined import split
from estcore.messages.renewal_info import decode_entries
from estcore.messages.signatures import NO_SENDERS, Senders
from estcore.messages.state import CACertificates, RevocationList, RevokedShard, SecretShard
from estcore.pki import jws
from estcore.pki.crl import read_crl
from estcore.pki.csr import parse_csr
from estcore.pki.names import canonical_name, display_name, parse_name
from estcore.pki.ocsp import read_answer, read_question
from estcore.pki.parsers import load_certificate, load_pem_certificates
from estcore.pki.sealed_text import RecipientKey, seal
from estcore.tlog import export
from estcore.tlog.checkpoint import parse_signed
from estcore.tlog.cosignature import (
    CosignerKey,
    WitnessRequest,
    cosign,
    verify_cosignature,
    with_cosignatures,
)
from estcore.tlog.verify import Options, verify
from estsuite_testing.memory_log import MemoryLog, record

_MAX_DER = 65_536
_CLOCK = SystemClock()
_RECIPIENT = RecipientKey()
_KEY = ec.derive_private_key(1, ec.SECP256R1())
_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dev-1")])
_START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def _csr() -> bytes:
    san = x509.SubjectAlternativeName([x509.DNSName("dev-1.test"), x509.DNSName("a.test")])
    builder = x509.CertificateSigningRequestBuilder(_NAME).add_extension(san, critical=False)
    builder = builder.add_attribute(x509.oid.AttributeOID.CHALLENGE_PASSWORD, b"x" * 16)
    return builder.sign(_KEY, SHA256()).public_bytes(Encoding.DER)


def _certificate() -> x509.Certificate:
    return (
        x509.CertificateBuilder(_NAME, _NAME, _KEY.public_key(), 7)
        .not_valid_before(_START)
        .not_valid_after(_START + dt.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("dev-1.test")]), critical=False)
        .sign(_KEY, SHA256())
    )


_CERTIFICATE = _certificate()
_DER = _CERTIFICATE.public_bytes(Encoding.DER)


def _crl() -> bytes:
    entry = x509.RevokedCertificateBuilder(9, _START)
    builder = x509.CertificateRevocationListBuilder(_NAME, _START, _START + dt.timedelta(days=1))
    builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(_KEY, SHA256()).public_bytes(Encoding.DER)


def _ocsp_request() -> bytes:
    builder = ocsp.OCSPRequestBuilder().add_certificate(_CERTIFICATE, _CERTIFICATE, SHA256())
    return (
        builder.add_extension(x509.OCSPNonce(b"n" * 16), critical=False)
        .build()
        .public_bytes(Encoding.DER)
    )


def _audit_batch() -> bytes:
    one = AuditRecord(
        record_id=ids.record_id("fuzz"),
        producer=Producer(service="est-frontend", instance="f-0", boot_id="b"),
        occurred_at=_START,
        correlation_id="c",
        action="est.simpleenroll",
        phase="outcome",
        outcome="success",
        actor=Actor(type="service", subject="CN=dev-1"),
    )
    return encode(AuditBatch(records=(one,)))


def _log() -> bytes:
    log = MemoryLog()
    for number in range(3):
        log.add(record(number))
    log.seal()
    return b"\n".join(log.export())


_DIGEST = DigestVerifier(PasswordFile.load(None), _CLOCK, realm="est", key=b"k" * 32)
_TOKEN = jws.sign(b'{"iat":1767225600}', typ="dpop+jwt", key=_KEY, certificate_der=_DER)
_THUMBPRINT = "x" * 43
_WITNESS_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
_WITNESS = CosignerKey("w.test", _WITNESS_KEY.public_key())
_MULTIPART = (
    b"--b\r\nContent-Type: application/pkcs8\r\nContent-Transfer-Encoding: base64\r\n\r\nAAAA\r\n"
    b"--b\r\nContent-Type: application/pkcs7-mime; smime-type=certs-only\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\nAAAA\r\n--b--\r\n"
)


def csr(octets: bytes) -> None:
    """A PKCS#10 request, as enrollment reads it."""
    request = parse_csr(octets)
    display_name(request.subject)


def keygen(octets: bytes) -> None:
    """A request for server-side key generation."""
    read_keygen_request(octets)


def attributes(octets: bytes) -> None:
    """CSR attributes, as a client reads them."""
    parse_csrattrs(octets)


def certificate(octets: bytes) -> None:
    """A certificate that a client presents, or an upstream CA returns."""
    load_certificate(octets)


def chain(octets: bytes) -> None:
    """A certs-only message of an upstream CA."""
    for found in read_certs_only(octets):
        load_certificate(found)


def pem(octets: bytes) -> None:
    """Certificates in PEM: truststores, and what an upstream CA returns."""
    load_pem_certificates(octets)


def body(octets: bytes) -> None:
    """The body of an enrollment, strict and lenient."""
    for lenient in (False, True):
        with contextlib.suppress(ESTSuiteError):
            decode_request(octets, max_der_bytes=_MAX_DER, lenient=lenient)


def multipart(octets: bytes) -> None:
    """The answer to server-side key generation, as a client reads it."""
    content_type, _, rest = octets.partition(b"\n")
    parse_keygen_response(content_type.decode("latin-1"), rest)


def token(octets: bytes) -> None:
    """An access token, before its signature is looked at."""
    token_jws.read(octets.decode("latin-1"), "auth.token")


def dpop(octets: bytes) -> None:
    """A DPoP proof."""
    text = octets.decode("latin-1")
    url = "https://est.test/.well-known/est/simpleenroll"
    check_proof(text, "token", thumbprint=_THUMBPRINT, method="POST", url=url, clock=_CLOCK)


def digest(octets: bytes) -> None:
    """The credentials of HTTP Digest."""
    _DIGEST.check(octets.decode("latin-1"), method="POST", paths=("/x",))


def signed(octets: bytes) -> None:
    """A command of an operator, and a proof of use: both are JWS with a certificate."""
    with contextlib.suppress(ESTSuiteError):
        read_command(octets)
    jws.verify(octets.decode("latin-1"), typ="dpop+jwt")


def ocsp_request(octets: bytes) -> None:
    """An OCSP request."""
    read_question(octets)


def ocsp_answer(octets: bytes) -> None:
    """An OCSP response, as the front end keeps it."""
    read_answer(octets)


def crl(octets: bytes) -> None:
    """A revocation list on its way to front ends."""
    read_crl(octets)


def path(octets: bytes) -> None:
    """The target of a request."""
    parse_path(parse_target(octets.decode("latin-1")).path)


def renewal_info(octets: bytes) -> None:
    """The id of a certificate, the answer about it, and the entries of a message."""
    text = octets.decode("latin-1")
    with contextlib.suppress(ESTSuiteError):
        assert str(parse_cert_id(text)) == text
    with contextlib.suppress(ESTSuiteError):
        info = RenewalInfo.decode(octets)
        assert RenewalInfo.decode(info.encode()) == info
    decode_entries("20261129", octets)


def name(octets: bytes) -> None:
    """A name in a policy, as text."""
    try:
        found = parse_name(octets.decode("utf-8", "replace"))
    except ValueError:
        return  # documented: a settings model makes a line of it
    canonical_name(found)
    parse_name(display_name(found))


def messages(octets: bytes) -> None:
    """Every message of the bus."""
    for message in split(octets):
        for model in _MESSAGES:
            with contextlib.suppress(ESTSuiteError):
                decode(model, message)
    read_event_ref(octets)


def signatures(octets: bytes) -> None:
    """The header of a signed message, and the senders file."""
    text = octets.decode("latin-1")
    with contextlib.suppress(ESTSuiteError):
        NO_SENDERS.verify("pki.state.policy.current", b"{}", text)
    Senders.read(text)


def records(octets: bytes) -> None:
    """A batch of audit records, as the writer reads it."""
    record_decoder.read(octets)


def exports(octets: bytes) -> None:
    """An export of the audit log, as ``estctl audit verify`` reads it."""
    verify(octets.split(b"\n"), Options(now=_START))
    with contextlib.suppress(ESTSuiteError):
        export.read_line(octets)
    parse_signed(octets.decode("utf-8", "replace"))


def cosigned(octets: bytes) -> None:
    """A request to a witness, the key of one, and a checkpoint with cosignatures."""
    text = octets.decode("utf-8", "replace")
    with contextlib.suppress(ESTSuiteError):
        assert WitnessRequest.parse(octets).encode() == octets
    with contextlib.suppress(ESTSuiteError):
        assert str(CosignerKey.parse(text)) == text.strip()
    verify_cosignature(parse_signed(text), _WITNESS)


_MESSAGES = (
    EnrollmentRequested, EnrollmentAnswered, CertificateIssued, CertificateRevoked, WindowClosed,
    CACertificates, RevocationList, RevokedShard, SecretShard, AuditBatch,
)  # fmt: skip


def sealed(octets: bytes) -> None:
    """The key that a secret is sealed for, and a sealed answer."""
    text = octets.decode("latin-1")
    with contextlib.suppress(ESTSuiteError):
        seal("x", text)
    _RECIPIENT.open(text)


def inspected(octets: bytes) -> None:
    """Any file that a person looks at."""
    for item in describe(octets, _START):
        assert item.fields


def _cosigned() -> tuple[bytes, ...]:
    log = MemoryLog()
    log.add(record(0))
    log.seal()
    note = log.notes[0][1]
    line = cosign(parse_signed(note).checkpoint, _WITNESS.name, _WITNESS_KEY, 1764417600)
    request = WitnessRequest(1, (bytes(32),), parse_signed(note))
    return request.encode(), str(_WITNESS).encode(), with_cosignatures(note, [line]).encode()


TARGETS: dict[str, tuple[Callable[[bytes], None], tuple[bytes, ...]]] = {
    "csr": (csr, (_csr(),)),
    "keygen": (keygen, (_csr(),)),
    "attributes": (attributes, (bytes.fromhex("301506072a8648ce3d020106082a8648ce3d0403020500"),)),
    "certificate": (certificate, (_DER,)),
    "chain": (chain, (certs_only([_DER]),)),
    "pem": (pem, (_CERTIFICATE.public_bytes(Encoding.PEM),)),
    "body": (body, (b64encode(_csr()), _CERTIFICATE.public_bytes(Encoding.PEM), _csr())),
    "multipart": (multipart, (b"multipart/mixed; boundary=b\n" + _MULTIPART,)),
    "token": (token, (_TOKEN.encode(), b"e30.e30.AA")),
    "dpop": (dpop, (_TOKEN.encode(),)),
    "digest": (
        digest,
        (
            b'username="u", realm="est", nonce="00", uri="/x", response="0", qop=auth, '
            b'nc=00000001, cnonce="c", algorithm=SHA-256',
        ),
    ),
    "signed": (signed, (_TOKEN.encode(),)),
    "ocsp_request": (ocsp_request, (_ocsp_request(),)),
    "ocsp_answer": (ocsp_answer, (ocsp.OCSPResponseBuilder.build_unsuccessful(
        ocsp.OCSPResponseStatus.TRY_LATER).public_bytes(Encoding.DER),)),
    "crl": (crl, (_crl(),)),
    "cosigned": (cosigned, _cosigned()),
    "path": (path, (b"/.well-known/est/label/simpleenroll", b"https://h:1/.well-known/est/cacerts")),
    "renewal_info": (
        renewal_info,
        (
            b"aYhba4dGQEHhs3uEe9CuLN4ByNQ.AIdlQyE",
            b'{"suggestedWindow":{"start":"2026-11-29T00:00:00Z","end":"2026-11-30T00:00:00Z"}}',
            b'{"key":"AAAAAAAAAAAAAAAAAAAAAA","version":0,"start":1,"end":2,'
            b'"not_after":1795950000}',
        ),
    ),
    "name": (name, (b"CN=web,O=Clinic\\, Inc.+OU=a", b"CN=#0c0161")),
    "messages": (messages, (_audit_batch(), b'{"id":"revoked-x-1"}')),
    "signatures": (signatures, (b"v1 k i s", b'{"keys":[]}')),
    "records": (records, (_audit_batch(),)),
    "exports": (exports, (_log(),)),
    "sealed": (sealed, (_RECIPIENT.public.encode(), seal("x", _RECIPIENT.public).encode())),
    "inspected": (inspected, (_DER, _CERTIFICATE.public_bytes(Encoding.PEM), _csr(), _crl())),
}  # fmt: skip
"""Name to function and seeds."""


def run(target: str, octets: bytes) -> None:
    """Give octets to a target; returns when they are read, or refused as documented."""
    with contextlib.suppress(ESTSuiteError):
        TARGETS[target][0](octets)


def identity(octets: bytes) -> str:
    """Return the name under which an input is kept."""
    return sha256(octets).hexdigest()[:16]
