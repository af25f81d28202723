"""``est-setup``: make what an installation needs before it starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from estcore.clock import SystemClock
from estcore.errors import ConfigurationError
from estcore.runtime import command_line
from estcore.runtime.command_line import PATH, Group
from estcore.runtime.console import console_script
from estcore.runtime.terminal import write_document, write_line
from estsetup import compose, kubernetes
from estsetup.extensions import Extensions
from estsetup.kubernetes import ORIGIN, Installation

_GROUP = Group(
    "est-setup",
    distribution="estsuite-setup",
    help="Makes keys, passwords, settings and Kubernetes Secrets of an installation.",
)


@_GROUP.command("compose", help="Fill the folder that docker-compose.yml mounts.")
@click.option("--folder", type=PATH, required=True, help="Folder to fill; what exists is kept.")
@click.option(
    "--siem/--no-siem", envvar="ESTSUITE_SIEM", help="Deliver audit records to rsyslog (siem.yml)."
)
@click.option(
    "--keycloak/--no-keycloak",
    envvar="ESTSUITE_KEYCLOAK",
    help="Accept tokens of a Keycloak (keycloak.yml).",
)
@click.option(
    "--monitoring/--no-monitoring",
    envvar="ESTSUITE_MONITORING",
    help="Send traces to a collector, let Prometheus scrape (monitoring.yml).",
)
@click.option(
    "--ha/--no-ha", envvar="ESTSUITE_HA", help="Three NATS servers, two of each service (ha.yml)."
)
def _compose(folder: Path, **named: Any) -> None:
    def kept(name: str) -> None:
        write_line(f"{folder / 'config' / name}: kept as it was changed")

    try:
        owners = compose.owners_for(folder)
        compose.prepare(folder, extensions=Extensions(**named), owners=owners, kept=kept)
    except OSError as exc:
        raise ConfigurationError(f"cannot prepare {folder}: {exc}") from exc
    write_line(f"{folder} is ready")


@_GROUP.command(
    "new-streams",
    help="Put the streams of NATS aside, for another number of servers; stop everything first.",
)
@click.option("--folder", type=PATH, required=True, help="Folder that docker-compose.yml mounts.")
def _new_streams(folder: Path) -> None:
    try:
        aside = compose.put_streams_aside(folder, SystemClock().now())
    except OSError as exc:
        raise ConfigurationError(f"cannot put the streams of {folder} aside: {exc}") from exc
    write_line(f"no streams in {folder / 'data'}" if aside is None else f"streams are in {aside}")


@_GROUP.command(
    "kubernetes",
    help="Print the Secrets and ConfigMaps that deploy/k8s expects, for kubectl apply -f -.",
)
@click.option("--folder", type=PATH, required=True, help="Folder of the keys; kept as they are.")
@click.option("--namespace", default="estsuite", help="Namespace of the suite.")
@click.option("--host", "hosts", multiple=True, help="Further name of the EST server.")
@click.option("--origin", default=ORIGIN, help="Name of the audit log: checkpoint.origin.")
@click.option("--nats-ca", type=PATH, help="Trust anchors (PEM) for a NATS of your own.")
@click.option("--postgres-ca", type=PATH, help="Trust anchors (PEM) for a PostgreSQL of your own.")
@click.option("--siem-ca", type=PATH, help="Trust anchors (PEM) for the SIEM.")
def _kubernetes(folder: Path, **named: Any) -> None:
    for document in kubernetes.documents(folder, Installation(**named)):
        # JSON is YAML, and no document has a line that begins with ---.
        write_document("---\n" + json.dumps(document, indent=1) + "\n")


@console_script
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``est-setup``."""
    return command_line.run(_GROUP, "est-setup", arguments)
