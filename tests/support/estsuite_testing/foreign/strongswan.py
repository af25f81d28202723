"""strongSwan's ``pki --est`` and ``--estca`` (``estsuite_testing.strongswan`` makes it run)."""

from __future__ import annotations

from cryptography import x509

from estsuite_testing.foreign.calls import Call, Failed, Result
from estsuite_testing.strongswan import Pki


class StrongSwan:
    """``pki`` of Debian's packages; it knows no labels, csrattrs or serverkeygen."""

    name = "strongSwan pki"

    def __init__(self, pki: Pki) -> None:
        self._pki = pki

    def run(self, call: Call) -> Result:
        """Carry out one call.

        Raises:
            Failed: pki failed.
        """
        url = ("--url", f"https://localhost:{call.port}")
        trust = ["--cacert", str(call.root)]
        settings = "" if call.tls is None else f"libtls {{ version_max = {call.tls} }}"
        try:
            with self._pki.configured(settings) as pki:
                if call.operation == "cacerts":
                    out = call.folder / "ca.pem"
                    pki.run("--estca", *url, *trust, "--caout", str(out), "--outform", "pem")
                    files = sorted(call.folder.glob("ca*.pem"))
                    return Result([x509.load_pem_x509_certificate(f.read_bytes()) for f in files])
                trust += ["--cacert", str(call.issuing)]
                der = pki.run("--est", *url, *trust, "--in", str(call.csr), *_who(call)).stdout
        except AssertionError as exc:
            raise Failed(str(exc)) from exc
        return Result([x509.load_der_x509_certificate(der)])


def _who(call: Call) -> tuple[str, ...]:
    if call.certificate is not None:
        return ("--cert", str(call.certificate), "--key", str(call.key))
    return ("--userpass", f"{call.user}:{call.password}")
