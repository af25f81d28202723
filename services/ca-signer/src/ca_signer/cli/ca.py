"""The command line of ``ca-signer ca …``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ca_signer.ceremony import ca_request, cross_certificates, offline_ca
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError

CLOCK = SystemClock()


def main(arguments: Sequence[str]) -> int:
    """Carry out a ceremony; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        _carry_out(parsed)
    except ConfigurationError as exc:
        sys.stderr.write(f"ca-signer: {exc.reason} [{exc.code}]\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ca-signer ca")
    verbs = parser.add_subparsers(dest="verb", required=True)
    first = verbs.add_parser("init", help="make root, issuing and infrastructure CA")
    first.add_argument("--name", required=True, help="organization")
    second = verbs.add_parser("issuing", help="make a further issuing CA under the same root")
    second.add_argument("--name", required=True, help="organization")
    second.add_argument("--out", type=Path, required=True, help="folder of the new one")
    for one, default in ((first, 1), (second, 2)):
        one.add_argument(
            "--issuing-csr", type=Path, help="PKCS#10 request of an issuing key in a token"
        )
        one.add_argument("--generation", type=int, default=default, help="goes into the names")
    cross = verbs.add_parser("cross", help="make OldWithNew and NewWithOld of two roots")
    cross.add_argument("--old", type=Path, required=True, help="folder of the old root")
    cross.add_argument("--new", type=Path, required=True, help="folder of the new root")
    cross.add_argument("--out", type=Path, required=True, help="PEM file, for cross_file")
    cross.add_argument(
        "--new-passphrase-file", type=Path, help="default: the same as the old one's"
    )
    server = verbs.add_parser("server-certificate", help="TLS certificate for est-frontend")
    server.add_argument("--out", type=Path, required=True)
    server.add_argument("--host", action="append", required=True, help="DNS name or IP address")
    server.add_argument("--days", type=int, default=397)
    asking = verbs.add_parser("csr", help="make an issuing key and a request for a CA above")
    asking.add_argument("--subject", required=True, help="RFC 4514, as CN=Issuing CA,O=Org")
    asking.add_argument("--algorithm", choices=ca_request.ALGORITHMS, default="ec-p256")
    other = verbs.add_parser("import", help="import an issuing certificate that another CA signed")
    other.add_argument("--certificate", type=Path, required=True)
    other.add_argument("--chain", type=Path, required=True, help="above it, up to the root")
    other.add_argument("--csr", type=Path, required=True, help="the request it answers")
    for one in (first, second, server, other, asking):
        one.add_argument("--folder", type=Path, required=True)
    for one in (first, second, server, cross, asking):
        one.add_argument("--passphrase-file", type=Path, required=True)
    return parser


def _carry_out(parsed: argparse.Namespace) -> None:
    if parsed.verb == "init":
        offline_ca.init(
            parsed.folder,
            name=parsed.name,
            passphrase_file=parsed.passphrase_file,
            clock=CLOCK,
            issuing_csr=parsed.issuing_csr,
            generation=parsed.generation,
        )
    elif parsed.verb == "issuing":
        cross_certificates.issuing(
            parsed.folder,
            out=parsed.out,
            name=parsed.name,
            passphrase_file=parsed.passphrase_file,
            clock=CLOCK,
            issuing_csr=parsed.issuing_csr,
            generation=parsed.generation,
        )
    elif parsed.verb == "cross":
        cross_certificates.cross(
            parsed.old,
            parsed.new,
            out=parsed.out,
            passphrase_file=parsed.passphrase_file,
            new_passphrase_file=parsed.new_passphrase_file,
        )
    elif parsed.verb == "csr":
        ca_request.request(
            parsed.folder,
            subject=parsed.subject,
            algorithm=parsed.algorithm,
            passphrase_file=parsed.passphrase_file,
        )
    elif parsed.verb == "import":
        # Reading key stores needs more than a ceremony does.
        from ca_signer.ceremony import import_certificate

        import_certificate.import_certificate(
            parsed.folder,
            certificate_file=parsed.certificate,
            chain_file=parsed.chain,
            csr_file=parsed.csr,
            clock=CLOCK,
        )
    else:
        offline_ca.server_certificate(
            parsed.folder,
            out=parsed.out,
            names=parsed.host,
            passphrase_file=parsed.passphrase_file,
            days=parsed.days,
            clock=CLOCK,
        )
