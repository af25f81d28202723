"""``estctl trust``: fetch a root certificate, have its fingerprint compared, pin it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click
from cryptography import x509

from estclient.est.bootstrap import Found, fetch, pin
from estcore.display import visible
from estcore.errors import ConfigurationError
from estcore.pki.names import display_name
from estcore.runtime.command_line import PATH
from estcore.runtime.terminal import write_line, write_prompt

_SHOWN = 200


@click.command("trust")
@click.option("--url", required=True, help="Front end: https://host[:port].")
@click.option("--label", help="Label; none is the default label.")
@click.option("--out", type=PATH, required=True, help="File to pin the root in, PEM.")
@click.option("--fingerprint", help="SHA-256 of the root, received by another way than this one.")
def trust(url: str, label: str | None, out: Path, fingerprint: str | None) -> None:
    """Fetch a root certificate, compare its fingerprint and pin it.

    Without --fingerprint a person compares and types yes.
    """
    asyncio.run(_trust(url, label, out, fingerprint))


async def _trust(url: str, label: str | None, out: Path, fingerprint: str | None) -> None:
    expected = None if fingerprint is None else _plain(fingerprint)
    presented = await fetch(url, label, expected)
    _show(presented)
    if expected is None:
        _ask()
    elif expected != presented.root_fingerprint:
        raise ConfigurationError(
            "the root is not the one with this fingerprint", code="bootstrap.fingerprint"
        )
    await pin(presented, url, label, out)
    write_line(f"pinned in {out}")


def _show(presented: Found) -> None:
    """Write the fingerprint to compare first, each on its own line, then what the server says."""
    write_line("SHA-256 of the root certificate, compare this one:")
    write_line(f"  {_grouped(presented.root_fingerprint)}")
    write_line("SHA-256 of the server certificate:")
    write_line(f"  {_grouped(presented.server_fingerprint)}")
    write_line("Names that the server gives itself; anybody can choose them:")
    write_line(f"  root    {_name(presented.root)}")
    write_line(f"  server  {_name(presented.server)}")


def _ask() -> None:
    if not sys.stdin.isatty():
        raise ConfigurationError(
            "no terminal to compare the fingerprint on: give --fingerprint",
            code="bootstrap.fingerprint",
        )
    write_prompt(
        "Compare with the fingerprint you received by phone or on paper. Type yes to trust: "
    )
    if sys.stdin.readline().strip() != "yes":
        raise ConfigurationError("not trusted, nothing was pinned", code="bootstrap.fingerprint")


def _name(certificate: x509.Certificate) -> str:
    """Return its subject, too short to push the fingerprint off the screen."""
    name = visible(display_name(certificate.subject))
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]} …"


def _plain(text: str) -> str:
    return "".join(c for c in text.lower() if c in "0123456789abcdef")


def _grouped(fingerprint: str) -> str:
    return ":".join(fingerprint[i : i + 2] for i in range(0, len(fingerprint), 2)).upper()
