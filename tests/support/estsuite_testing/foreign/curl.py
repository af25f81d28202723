"""curl as an EST client; base64, PKCS #7 and multipart are taken apart by others (openssl in docs)."""

from __future__ import annotations

import base64
import re
import shutil

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from estcore.est.csrattrs import parse_csrattrs
from estsuite_testing.foreign.calls import Call, Failed, Result, run_client


class Curl:
    """The machine's curl."""

    name = "curl"

    def run(self, call: Call) -> Result:
        """Carry out one call.

        Raises:
            Failed: curl failed, or the status is not 200.
        """
        command = [shutil.which("curl") or "curl", "-q", "-sS", "--cacert", str(call.root)]
        command += ["-w", "\n%{http_code} %{content_type}"]
        if call.csr is not None:
            csr = x509.load_pem_x509_csr(call.csr.read_bytes())
            body = call.folder / "csr.b64"
            body.write_bytes(base64.encodebytes(csr.public_bytes(Encoding.DER)))
            command += ["-H", "Content-Type: application/pkcs10", "--data-binary", f"@{body}"]
        if call.user is not None:
            scheme = ["--digest"] if call.digest else []
            command += [*scheme, "-u", f"{call.user}:{call.password}"]
        if call.certificate is not None:
            command += ["--cert", str(call.certificate), "--key", str(call.key)]
        if call.tls is not None:
            command += [f"--tlsv{call.tls}", "--tls-max", call.tls]
        out = run_client([*command, f"https://localhost:{call.port}{call.path}"])
        body_octets, _, last = out.rpartition(b"\n")
        status, _, kind = last.decode().partition(" ")
        if status != "200":
            raise Failed(f"{status}: {body_octets.decode(errors='replace')}")
        return _read(call, body_octets, kind)


def _read(call: Call, body: bytes, kind: str) -> Result:
    if call.operation == "csrattrs":
        demands = parse_csrattrs(base64.b64decode(body))
        return Result(attributes=f"{demands} {base64.b64decode(body).hex()}")
    if call.operation != "serverkeygen":
        return Result(pkcs7.load_der_pkcs7_certificates(base64.b64decode(body)))
    boundary = re.search(r"boundary=\"?([^\";]+)", kind)
    assert boundary is not None, kind
    parts = re.split(rb"\r?\n?--" + re.escape(boundary[1]).encode(), body)
    key, certs = [part.partition(b"\r\n\r\n")[2] for part in parts[1:3]]
    text = b"-----BEGIN PRIVATE KEY-----\n" + key.strip() + b"\n-----END PRIVATE KEY-----\n"
    found = pkcs7.load_der_pkcs7_certificates(base64.b64decode(certs))
    return Result(found, generated_key=text)
