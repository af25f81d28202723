"""``estctl enroll``, ``renew``, ``prove``, ``csr``: certificates in files, one line each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import click

from estclient.est.client import ESTClient
from estclient.files import enrollment
from estclient.files.credential_files import CredentialFiles, key_in, write_request
from estclient.files.description import relative
from estclient.files.enrollment import Server, Stored
from estclient.files.server_options import (
    key_beside,
    with_authentication,
    with_pair,
    with_server,
)
from estcore.clock import Clock, SystemClock
from estcore.errors import ConfigurationError
from estcore.pki.names import display_name
from estcore.pki.profile import KeyAlgorithm
from estcore.runtime.command_line import PATH, options
from estcore.runtime.terminal import write_line

_CLOCK = SystemClock()
_algorithm = click.option(
    "--key-algorithm",
    "algorithm",
    type=click.Choice(get_args(KeyAlgorithm)),
    default="ec-p256",
    help="Kind of a new key.",
)
_names = options(
    click.option("--subject", help="As CN=web.example,O=Clinic."),
    click.option("--san", multiple=True, help="dns:, ip:, uri: or email: and a name; repeatable."),
)


@click.command("enroll")
@with_server
@_names
@click.option("--out", type=PATH, required=True, help="File for the certificate and its chain.")
@click.option("--key", type=PATH, help="Key file, made if missing; default: OUT with .key.")
@_algorithm
@with_authentication
def enroll(
    *,
    server: Server,
    connect: Callable[[Server, Clock], ESTClient],
    subject: str | None,
    san: tuple[str, ...],
    out: Path,
    key: Path | None,
    algorithm: KeyAlgorithm,
) -> None:
    """Get a first certificate: make a key, request, verify, store.

    A repetition after an interruption or a wait for approval uses the same key, so the server
    answers with the same certificate. For a key that is kept in a device: estctl enroll-csr.
    """
    if subject is None and not san:
        raise ConfigurationError("a certificate needs --subject or --san")
    files = CredentialFiles(out, key or key_beside(out))
    enrolling = enrollment.enroll(
        connect(server, _CLOCK),
        server,
        files,
        subject=subject or "",
        san=san,
        algorithm=algorithm,
        clock=_CLOCK,
    )
    _show(asyncio.run(enrolling), out, files.key)


@click.command("enroll-csr")
@with_server
@click.option("--csr", type=PATH, required=True, help="Certification request, PEM or DER.")
@click.option("--out", type=PATH, required=True, help="File for the certificate and its chain.")
@with_authentication
def enroll_csr(
    *, server: Server, connect: Callable[[Server, Clock], ESTClient], csr: Path, out: Path
) -> None:
    """Get a first certificate for a request whose key is kept in another place."""
    request = enrollment.read_request(csr)
    client = connect(server, _CLOCK)
    _show(asyncio.run(enrollment.enroll_request(client, server, request, out, clock=_CLOCK)), out)


@click.command("renew")
@with_server
@with_pair
@_algorithm
@click.option("--same-key", is_flag=True, help="Keep the key, where the profile allows it.")
@click.option(
    "--fetch", is_flag=True, help="Fetch what the server renewed by itself, without a request."
)
@click.option("--prove", "at_once", is_flag=True, help="Prove at once that it is in use.")
def renew(
    *,
    server: Server,
    files: CredentialFiles,
    algorithm: KeyAlgorithm,
    same_key: bool,
    fetch: bool,
    at_once: bool,
) -> None:
    """Replace a certificate by a new one for the same names, authenticated by itself.

    Both files are replaced when the new ones are complete. Then make the service reload, and run
    estctl prove; or give --prove where nothing has to reload.
    """
    client = server.client(_CLOCK, credential=(files.certificate, files.key))
    if fetch:
        stored = asyncio.run(enrollment.fetch(client, server, files, clock=_CLOCK))
        if stored is None:
            raise ConfigurationError(
                "the server has nothing to fetch in place of the certificate",
                code="client.nothing_to_fetch",
            )
    else:
        renewing = enrollment.renew(
            client, server, files, algorithm=algorithm, same_key=same_key, clock=_CLOCK
        )
        stored = asyncio.run(renewing)
    _show(stored, files.certificate, files.key)
    if at_once:
        _prove(server, files)
    else:
        write_line("When the service uses it: estctl prove, with the same options.")


@click.command("prove")
@with_server
@with_pair
def prove(*, server: Server, files: CredentialFiles) -> None:
    """Prove that a renewed certificate is in use: the rotation is complete.

    The old certificate then ends by itself, or is revoked where the profile says so.
    """
    _prove(server, files)


@click.command("csr")
@_names
@click.option("--key", type=PATH, required=True, help="Key file, made if missing.")
@click.option("--out", type=PATH, required=True, help="File for the request, PEM.")
@_algorithm
def csr(
    *, subject: str | None, san: tuple[str, ...], key: Path, out: Path, algorithm: KeyAlgorithm
) -> None:
    """Make a certification request (PKCS #10) and, if it is missing, its key."""
    if subject is None and not san:
        raise ConfigurationError("a request needs --subject or --san")
    private_key, made = key_in(key, algorithm)
    write_request(out, enrollment.request_for(private_key, subject or "", san))
    write_line(f"request      {out}")
    write_line(f"key          {key}{' (new)' if made else ''}")


def _prove(server: Server, files: CredentialFiles) -> None:
    client = server.client(_CLOCK, credential=(files.certificate, files.key))
    if not asyncio.run(enrollment.prove(client)):
        raise ConfigurationError(
            "the server knows no rotation to this certificate: a first one needs no proof, "
            "after a renewal try again in some seconds",
            code="client.no_rotation",
        )
    write_line("The new certificate is proven to be in use.")


def _show(stored: Stored, out: Path, key: Path | None = None) -> None:
    certificate = stored.chain[0]
    end = certificate.not_valid_after_utc
    write_line(f"certificate  {out}")
    if key is not None:
        write_line(f"key          {key}{' (new)' if stored.new_key else ''}")
    write_line(f"subject      {display_name(certificate.subject)}")
    write_line(f"issuer       {display_name(certificate.issuer)}")
    write_line(f"valid until  {end:%Y-%m-%d %H:%M:%S} UTC ({relative(end, _CLOCK.now())})")
