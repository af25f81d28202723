"""Options of every verb that sends a signed command: where to, and signed by whom."""

from __future__ import annotations

import click

from estcore.runtime.command_line import PATH


def connection_options() -> list[click.Parameter]:
    """Return the options; ``orders.Connection`` has a field for each."""
    return [
        _option("config", "YAML file with the settings; or ESTCTL_CONFIG.", type=PATH),
        _option("operator-certificate", "Certificate, instead of certificate_file.", type=PATH),
        _option("operator-key", "Key, instead of key_file.", type=PATH),
        _option("nats-url", "URL of NATS, instead of bus.url."),
        _option("nats-seed", "NKey seed file, instead of bus.nkey_seed_file.", type=PATH),
    ]


def _option(name: str, text: str, type: click.Path | None = None) -> click.Option:
    return click.Option([f"--{name}"], help=text, type=type)
