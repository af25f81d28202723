"""``estsuite up``: the suite to play with, until Ctrl-C. Data survive; a second start continues."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

from estcore.errors import ConfigurationError
from estcore.runtime.service import sleep_or_stop
from estdev.layout import Layout, Ports
from estdev.local import LocalSuite, log_to
from estdev.operator import make_operator
from estdev.story import Story
from estsetup.keep import keep_secret

_FOLLOWED = ("est-frontend", "ca-signer", "renewal", "audit")
SECRET_ID = "web-bootstrap"  # noqa: S105 - the id, not the secret


async def run_up(folder: Path, ports: Ports) -> None:
    """Start, explain, follow the logs, stop cleanly.

    Raises:
        ConfigurationError: a port is taken, or something does not start or has ended.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    story = Story()
    ports.choose()
    log_to(folder / "logs" / "estctl.log")
    suite = LocalSuite(Layout(folder, ports), progress=story.step)
    try:
        await suite.start()
        await _secret(suite)
        await _operator(suite, story)
        _explain(suite, story)
        await _follow(suite, stop, story)
    finally:
        story.step("stopping")
        await suite.stop()
    story.step("stopped; the data stay in " + str(suite.layout.folder))


async def _secret(suite: LocalSuite) -> None:
    """Make the enrollment secret once; it is kept for the person who plays."""
    path = suite.layout.secrets / f"{SECRET_ID}.txt"
    if path.exists():
        return
    config = str(suite.layout.config_file("ca-signer"))
    made = await suite.command(
        "ca-signer", "secret", "create", "--id", SECRET_ID, "--lifetime", "365d", "--config", config
    )
    keep_secret(path, made.strip())


async def _operator(suite: LocalSuite, story: Story) -> None:
    """Make the operator once; a folder whose policy is from before operators has none."""
    try:
        await make_operator(suite)
    except ConfigurationError as exc:
        story.step(f"no operator for commands: {exc.reason}")


def _explain(suite: LocalSuite, story: Story) -> None:
    layout = suite.layout
    secret = layout.secrets / f"{SECRET_ID}.txt"
    root, url = layout.root_file, suite.url
    admin = {name: r.admin_port for name, r in suite.services.items()}
    story.step("the suite is up")
    story.detail(
        f"EST          {url}\n"
        f"root CA      {root}\n"
        f"credentials  user {SECRET_ID}, secret in {secret}\n"
        f"PostgreSQL   127.0.0.1:{layout.ports.postgres}, database estsuite, "
        f"passwords in {layout.secrets}\n"
        f"NATS         {layout.nats.url}, seeds in {layout.secrets}\n"
        f"SIEM         {layout.siem_file}\n"
        "health       "
        + "  ".join(f"{n} http://127.0.0.1:{p}/readyz" for n, p in admin.items())
        + f"\npolicy       {layout.config / 'policy.yaml'} (a change is loaded within seconds)\n"
        f"users        estctl password --user NAME --users-file {layout.users_file}\n"
        f"operator     estctl cert list --config {layout.config_file('operator')}\n"
        "\nTry, in another terminal:\n\n"
        f"  curl --cacert {root} {url}/cacerts\n\n"
        "  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout web.key \\\n"
        "    -subj /CN=web.clinic.example -addext subjectAltName=DNS:web.clinic.example \\\n"
        "    -outform DER | openssl base64 -out web.csr\n\n"
        f'  printf \'user = "{SECRET_ID}:%s"\\n\' "$(cat {secret})" |\n'
        f"    curl -K - --cacert {root} -H 'Content-Type: application/pkcs10' \\\n"
        f"    --data-binary @web.csr {url}/simpleenroll | tr -d '\\n' | openssl base64 -d -A | \\\n"
        "    openssl pkcs7 -inform DER -print_certs -out web.pem\n\n"
        "Ctrl-C stops everything. The log follows.\n"
    )


async def _follow(suite: LocalSuite, stop: asyncio.Event, story: Story) -> None:
    ended = asyncio.ensure_future(suite.ended())
    places = {n: (suite.layout.logs / f"{n}.log").stat().st_size for n in _FOLLOWED}
    while not await sleep_or_stop(stop, 0.3):
        for name in _FOLLOWED:
            places[name] = _tell_new(suite.layout.logs / f"{name}.log", places[name], story)
        if ended.done():
            name, path = ended.result()
            raise ConfigurationError(f"{name} ended by itself (log: {path})", code="suite.ended")
    ended.cancel()


def _tell_new(path: Path, place: int, story: Story) -> int:
    with path.open("rb") as file:
        file.seek(place)
        octets = file.read()
    complete, newline, _ = octets.rpartition(b"\n")
    for line in complete.decode(errors="replace").splitlines():
        story.step(_short(line))
    return place + len(complete) + len(newline)


def _short(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    columns = ("time", "level", "message", "service", "instance", "logger", "trace")
    extras = " ".join(f"{k}={v}" for k, v in entry.items() if k not in columns)
    return (
        f"{entry.get('service', ''):13} {entry.get('level', ''):8}{entry.get('message')} {extras}"
    )
