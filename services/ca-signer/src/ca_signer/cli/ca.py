"""The command line of ``ca-signer ca …``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ca_signer.ceremony import ca_request, cross_certificates, offline_ca
from estcore.clock import SystemClock
from estcore.runtime.command_line import PATH, Group, options

CLOCK = SystemClock()
ca = Group("ca")

_folder = click.option("--folder", type=PATH, required=True, help="Folder of the CA.")
_passphrase_file = click.option(
    "--passphrase-file", type=PATH, required=True, help="File with the passphrase of its keys."
)
_name = click.option("--name", required=True, help="Organization.")
_issuing_csr = click.option(
    "--issuing-csr", type=PATH, help="PKCS#10 request of an issuing key in a token."
)


def _generation(default: int) -> Any:
    return click.option(
        "--generation", type=int, default=default, help="Generation number in the names."
    )


@ca.command("init")
@options(_name, _issuing_csr, _generation(1), _folder, _passphrase_file)
def _init(
    name: str, issuing_csr: Path | None, generation: int, folder: Path, passphrase_file: Path
) -> None:
    """Create a root CA, an issuing CA and an infrastructure CA."""
    offline_ca.init(
        folder,
        name=name,
        passphrase_file=passphrase_file,
        clock=CLOCK,
        issuing_csr=issuing_csr,
        generation=generation,
    )


@ca.command("issuing")
@_name
@click.option("--out", type=PATH, required=True, help="Folder of the new issuing CA.")
@options(_issuing_csr, _generation(2), _folder, _passphrase_file)
def _issuing(out: Path, folder: Path, passphrase_file: Path, **choices: Any) -> None:
    """Create a further issuing CA under the same root."""
    cross_certificates.issuing(
        folder, out=out, passphrase_file=passphrase_file, clock=CLOCK, **choices
    )


@ca.command("cross")
@click.option("--old", type=PATH, required=True, help="Folder of the old root.")
@click.option("--new", type=PATH, required=True, help="Folder of the new root.")
@click.option("--out", type=PATH, required=True, help="PEM file to write, for cross_file.")
@click.option("--new-passphrase-file", type=PATH, help="Default: the passphrase of the old root.")
@_passphrase_file
def _cross(
    old: Path, new: Path, out: Path, new_passphrase_file: Path | None, passphrase_file: Path
) -> None:
    """Cross-certify two roots: OldWithNew and NewWithOld."""
    cross_certificates.cross(
        old, new, out=out, passphrase_file=passphrase_file, new_passphrase_file=new_passphrase_file
    )


@ca.command("server-certificate")
@click.option("--out", type=PATH, required=True, help="Folder to write server.pem and its key to.")
@click.option("--host", multiple=True, required=True, help="DNS name or IP address; repeatable.")
@click.option("--days", type=int, default=397, help="Lifetime.")
@options(_folder, _passphrase_file)
def _server_certificate(
    out: Path, host: tuple[str, ...], days: int, folder: Path, passphrase_file: Path
) -> None:
    """Issue a TLS server certificate for est-frontend."""
    offline_ca.server_certificate(
        folder, out=out, names=list(host), passphrase_file=passphrase_file, days=days, clock=CLOCK
    )


@ca.command("csr")
@click.option("--subject", required=True, help="RFC 4514, as CN=Issuing CA,O=Org.")
@click.option(
    "--algorithm",
    type=click.Choice(ca_request.ALGORITHMS),
    default="ec-p256",
    help="Algorithm of the key.",
)
@options(_folder, _passphrase_file)
def _csr(subject: str, algorithm: Any, folder: Path, passphrase_file: Path) -> None:
    """Generate an issuing key and a certificate request for a CA above."""
    ca_request.request(
        folder, subject=subject, algorithm=algorithm, passphrase_file=passphrase_file
    )


@ca.command("import")
@click.option("--certificate", type=PATH, required=True, help="Issuing certificate, PEM.")
@click.option("--chain", type=PATH, required=True, help="Certificates above it, up to the root.")
@click.option("--csr", type=PATH, required=True, help="Certificate request that it answers.")
@_folder
def _import(certificate: Path, chain: Path, csr: Path, folder: Path) -> None:
    """Import an issuing certificate signed by an external CA."""
    # Reading key stores needs more than a ceremony does.
    from ca_signer.ceremony import import_certificate

    import_certificate.import_certificate(
        folder, certificate_file=certificate, chain_file=chain, csr_file=csr, clock=CLOCK
    )
