"""Send an operator's command to ca-signer and print its result, or export pages of it."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estclient.operators.client import Operator, connect
from estclient.operators.output import pem, progress_row, render
from estclient.operators.sealed_secret import SealedSecret
from estclient.operators.settings import OperatorSettings
from estcore.clock import SystemClock
from estcore.runtime.settings import load_settings
from estcore.runtime.terminal import write_document, write_json, write_line

SIGNER = "ca-signer"
_WATCH_S = 2.0
_PAGE = 200
"""Certificates an answer carries: with some 2 kB each it stays below the bus's 1 MiB."""


@dataclass(frozen=True)
class Connection:
    """Where a command goes and who signs it; None is taken from the settings."""

    config: Path | None = None
    operator_certificate: Path | None = None
    operator_key: Path | None = None
    nats_url: str | None = None
    nats_seed: Path | None = None


@dataclass(frozen=True)
class Order:
    """A command to send, with its arguments as the service takes them."""

    verb: str
    arguments: dict[str, Any]
    connection: Connection
    as_json: bool = False


def carry_out(order: Order) -> None:
    """Send the command and print its result.

    Raises:
        ConfigurationError: settings, certificate or key cannot be used.
        RequestRejected: refused.
        Unavailable: no answer, or not now.
    """
    asyncio.run(_carry_out(order))


async def _carry_out(order: Order) -> None:
    arguments = dict(order.arguments)
    _resolve_expiry(arguments, SystemClock().now())
    recipient = SealedSecret.of(arguments) if order.verb == "secret-create" else None
    home = Path(os.environ.get("ESTSUITE_HOME", ".estsuite"))
    operator, bus = await connect(
        operator_settings(order.connection, home, os.environ), SystemClock()
    )
    try:
        if "out" in arguments:
            out, form = arguments.pop("out"), arguments.pop("form")
            await _export(operator, arguments, out, form)
            return
        if arguments.pop("watch", False):
            await _watch(operator, order, arguments)
            return
        result = await operator.send(SIGNER, order.verb, arguments)
    except BaseException:  # Clean-up, then raised again.
        if recipient is not None:
            recipient.discard()
        raise
    finally:
        await bus.close()
    if recipient is not None:
        result = recipient.opened(result)
    if order.as_json:
        write_json(result, indent=1)
    else:
        write_document(render(result))


async def _watch(operator: Operator, order: Order, arguments: dict[str, Any]) -> None:
    """Print a campaign, then its progress whenever it changes, until it ends."""
    last = ""
    async for result in operator.watch(SIGNER, order.verb, arguments, every_s=_WATCH_S):
        row = progress_row(result)
        if order.as_json and row != last:
            write_json(result)
        elif not last:
            write_document(render(result))
        elif row != last:
            write_document(row)
        last = row
        if result.get("ended_at") is not None:
            return


def _resolve_expiry(arguments: dict[str, Any], now: dt.datetime) -> None:
    """Replace ``expires_within`` by the two moments that the service takes."""
    within = arguments.pop("expires_within", None)
    if within is not None:
        arguments |= {"expires_after": now.isoformat(), "state": "good"}
        arguments["expires_before"] = (now + within).isoformat()


async def _export(operator: Operator, arguments: dict[str, Any], out: Path, form: str) -> None:
    """Write every page; an incomplete file is removed."""
    partial, count = out.with_name(out.name + ".partial"), 0
    query = {**arguments, "limit": _PAGE, "with_certificate": form == "pem"}
    with partial.open("w", encoding="utf-8") as file:
        while True:
            page = await operator.send(SIGNER, "certificate-list", query)
            for row in page["certificates"]:
                file.write(pem(row["certificate"]) if form == "pem" else json.dumps(row) + "\n")
            count += len(page["certificates"])
            if page["next"] is None:
                break
            query["after"] = page["next"]
    partial.replace(out)
    write_line(f"{count} certificates in {out}")


def operator_settings(
    connection: Connection, home: Path, environ: Mapping[str, str]
) -> OperatorSettings:
    """Return the settings: options before variables before the file.

    Without a file given, ``home`` of a local suite is looked into.

    Raises:
        ConfigurationError: something is missing or cannot be read.
    """
    local = home / "config" / "operator.yaml"
    path = connection.config
    if path is None and "ESTCTL_CONFIG" not in environ and local.exists():
        path = local
    chosen = {
        "ESTCTL__BUS__URL": connection.nats_url,
        "ESTCTL__BUS__NKEY_SEED_FILE": connection.nats_seed,
        "ESTCTL__CERTIFICATE_FILE": connection.operator_certificate,
        "ESTCTL__KEY_FILE": connection.operator_key,
    }
    variables = {name: json.dumps(str(v)) for name, v in chosen.items() if v is not None}
    return load_settings(OperatorSettings, "ESTCTL", path, {**environ, **variables})
