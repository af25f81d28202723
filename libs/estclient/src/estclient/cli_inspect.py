"""``estctl inspect``: what is in a file, and when its certificate is best renewed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import click

from estclient.errors import RenewalInfoExpired, RenewalInfoUnknown
from estclient.files.description import Item, describe, relative
from estclient.files.enrollment import Server
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError
from estcore.runtime.command_line import PATH
from estcore.runtime.terminal import write_json, write_line

_CLOCK = SystemClock()
_FROM_PIPE = Path("-")


@click.command("inspect")
@click.argument("file", type=PATH)
@click.option(
    "--url", "urls", multiple=True, envvar="EST_URL", help="Ask this front end when to renew."
)
@click.option("--trust", type=PATH, envvar="EST_TRUST", help="Root certificate, for --url.")
@click.option("--label", envvar="EST_LABEL", help="Label, for --url.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(
    file: Path, urls: tuple[str, ...], trust: Path | None, label: str | None, as_json: bool
) -> None:
    """Show certificates, requests, revocation lists and PKCS #7 of a file, or of - for a pipe.

    PEM, DER and the base64 of EST are read. With --url a front end is asked when to renew.
    """
    try:
        octets = sys.stdin.buffer.read() if file == _FROM_PIPE else file.read_bytes()
    except OSError as exc:
        raise ConfigurationError(f"cannot read {file}: {exc.strerror}") from exc
    items = describe(octets, _CLOCK.now())
    if urls:
        if trust is None:
            raise ConfigurationError("--url needs --trust")
        items[0] = asyncio.run(_with_window(items[0], Server(urls, trust, label)))
    if as_json:
        write_json([_as_json(item) for item in items], indent=1)
        return
    for number, item in enumerate(items):
        if number:
            write_line()
        write_line(f"{item.kind}")
        for name, value in item.fields:
            write_line(f"  {name:12} {value}")


async def _with_window(item: Item, server: Server) -> Item:
    if item.certificate is None:
        raise ConfigurationError("--url needs a file that begins with a certificate")
    now = _CLOCK.now()
    try:
        info = await server.client(_CLOCK).renewal_info(item.certificate)
    except (RenewalInfoUnknown, RenewalInfoExpired) as exc:
        return Item(item.kind, (*item.fields, ("renew", exc.text)), item.certificate)
    when = [f"from {info.start:%Y-%m-%d %H:%M:%S} UTC ({relative(info.start, now)})"]
    when.append(f"to {info.end:%Y-%m-%d %H:%M:%S} UTC")
    fields = [("renew", " ".join(when)), ("reason", info.reason), ("see", info.explanation_url)]
    more = tuple((name, value) for name, value in fields if value is not None)
    return Item(item.kind, (*item.fields, *more), item.certificate)


def _as_json(item: Item) -> dict[str, Any]:
    return {"kind": item.kind, **{name.replace(" ", "_"): value for name, value in item.fields}}
