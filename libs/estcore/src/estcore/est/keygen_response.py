"""The answer of serverkeygen: two parts in multipart/mixed (RFC 7030 section 4.4.2).

First the private key, then the certificate exactly as simpleenroll answers it. Lines end with
CRLF and every part names its Content-Transfer-Encoding: RFC 8951 ignores it, libest and
BouncyCastle do not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from estcore.errors import MalformedRequest
from estcore.est.transfer import WrittenForm, decode_request, encode_response

PKCS8 = "application/pkcs8"
SEALED_KEY = "application/pkcs7-mime; smime-type=server-generated-key"
CERTS_ONLY = "application/pkcs7-mime; smime-type=certs-only"
BOUNDARY = "est_server_generated_key"
"""Cannot occur in a part: base64 has no underscore and no line of two hyphens."""
CONTENT_TYPE = f"multipart/mixed; boundary={BOUNDARY}"

MAX_RESPONSE_BYTES = 262_144
MAX_PART_HEADERS = 16
_MULTIPART = re.compile(r'multipart/mixed\s*;(?:.*;)?\s*boundary=(?:"([^"]+)"|([^\s;"]+))', re.I)
_MAX_BOUNDARY = 70
_TWO = 2


@dataclass(frozen=True, repr=False)
class KeygenResponse:
    """What the server made. ``key`` is PKCS#8, or a CMS EnvelopedData where ``sealed``.

    ``certificate`` is the certs-only CMS message. Not looked into: neither is checked here.
    """

    key: bytes
    sealed: bool
    certificate: bytes


def encode_keygen_response(response: KeygenResponse, form: WrittenForm = "single-line") -> bytes:
    """Return the body that goes with ``CONTENT_TYPE``."""
    parts = (
        (SEALED_KEY if response.sealed else PKCS8, response.key),
        (CERTS_ONLY, response.certificate),
    )
    lines: list[bytes] = []
    for content_type, der in parts:
        lines += [
            f"--{BOUNDARY}".encode(),
            f"Content-Type: {content_type}".encode(),
            b"Content-Transfer-Encoding: base64",
            b"",
            *encode_response(der, form).splitlines(),
        ]
    return b"\r\n".join([*lines, f"--{BOUNDARY}--".encode(), b""])


def parse_keygen_response(content_type: str, body: bytes) -> KeygenResponse:
    """Return the two parts of a server's answer, in whichever order they come.

    Preamble and epilogue are skipped, lines may end with LF alone, and
    Content-Transfer-Encoding is ignored: a part is base64 (RFC 8951 section 3).

    Raises:
        MalformedRequest: too large, no such multipart, or not one key and one certificate.
    """
    if len(body) > MAX_RESPONSE_BYTES:
        raise _malformed(f"more than {MAX_RESPONSE_BYTES} bytes")
    keys: list[tuple[bytes, bool]] = []
    certificates: list[bytes] = []
    for part in _parts(_boundary(content_type), body):
        kind, der = _read_part(part)
        if kind == CERTS_ONLY:
            certificates.append(der)
        else:
            keys.append((der, kind == SEALED_KEY))
    if len(keys) != 1 or len(certificates) != 1:
        raise _malformed("there is not exactly one key and one certificate")
    (key, sealed), certificate = keys[0], certificates[0]
    return KeygenResponse(key, sealed, certificate)


def _malformed(what: str) -> MalformedRequest:
    return MalformedRequest(f"answer with a generated key: {what}", code="keygen.malformed")


def _boundary(content_type: str) -> bytes:
    match = _MULTIPART.match(content_type.strip()) if content_type.isascii() else None
    boundary = (match[1] or match[2]) if match else ""
    if not 1 <= len(boundary) <= _MAX_BOUNDARY:
        raise _malformed("not multipart/mixed with a boundary")
    return boundary.encode()


def _parts(boundary: bytes, body: bytes) -> list[list[bytes]]:
    """Return the lines of each part between its delimiters (RFC 2046 section 5.1.1)."""
    delimiter, close = b"--" + boundary, b"--" + boundary + b"--"
    parts: list[list[bytes]] = []
    for line in body.split(b"\n"):
        text = line.rstrip(b" \t\r")
        if text == close:
            if len(parts) != _TWO:
                raise _malformed("there are not two parts")
            return parts
        if text == delimiter:
            parts.append([])
        elif parts:
            parts[-1].append(text)
    raise _malformed("the last delimiter is missing")


def _read_part(lines: list[bytes]) -> tuple[str, bytes]:
    """Return the kind of a part and the DER inside."""
    if b"" not in lines or lines.index(b"") > MAX_PART_HEADERS:
        raise _malformed("a part has no end of header, or a long one")
    end = lines.index(b"")
    headers = [line.partition(b":") for line in lines[:end]]
    types = [value for name, _, value in headers if name.strip().lower() == b"content-type"]
    if len(types) != 1:
        raise _malformed("a part has not one Content-Type")
    return _kind(types[0]), decode_request(
        b"\n".join(lines[end + 1 :]), max_der_bytes=MAX_RESPONSE_BYTES
    )


def _kind(content_type: bytes) -> str:
    """Return the content type in our spelling; other parameters are ignored."""
    text = content_type.decode("latin-1").lower().replace('"', "")
    media, *parameters = (piece.strip() for piece in text.split(";"))
    for known in (PKCS8, SEALED_KEY, CERTS_ONLY):
        name, _, parameter = known.partition("; ")
        if media == name and (not parameter or parameter in parameters):
            return known
    raise _malformed("a part of another type")
