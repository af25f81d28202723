"""NATS with the configuration that ``est-setup kubernetes`` makes, and clients with its Secrets."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from estclient.operators.client import connect
from estclient.operators.settings import OperatorSettings
from estcore.clock import SystemClock
from estcore.errors import BusUnavailable
from estcore.messages import topics
from estcore.runtime.bus import Bus
from estcore.runtime.settings import BusSettings
from estcore.runtime.topology import declare
from estdev.ports import free_port
from estsetup.kubernetes import Installation, documents
from estsetup.server_certificates import make_certificate


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers") / "keys"


@pytest.fixture(scope="module")
def port(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server with the documents of its pod, on another port."""
    folder, port = tmp_path_factory.mktemp("pod"), free_port()
    for document in documents(keys, Installation()):
        if document["metadata"]["name"] == "nats-tls":
            for name, data in document["data"].items():
                (folder / name).write_bytes(base64.b64decode(data))
        if document["metadata"]["name"] == "nats-config":
            text = document["data"]["nats.conf"].replace("/etc/nats-tls", str(folder))
            text = text.replace("4222", str(port)).replace('"/data"', f'"{folder / "js"}"')
            (folder / "nats.conf").write_text(text.replace("0.0.0.0:8222", "127.0.0.1:0"))
    server = Path(sys.executable).parent / "nats-server"
    with subprocess.Popen([server, "-c", folder / "nats.conf", "-l", folder / "log"]) as process:
        yield port
        process.terminate()


def bus_settings(keys: Path, port: int, user: str, host: str = "localhost") -> BusSettings:
    senders = keys / "senders.json"
    (trust,) = [
        d for d in documents(keys, Installation()) if d["metadata"]["name"] == "estsuite-trust"
    ]
    senders.write_text(trust["data"]["senders.json"])
    return BusSettings(
        url=f"tls://{host}:{port}",
        nkey_seed_file=keys / "keys" / f"nats-{user}.seed",
        senders_file=senders,
        ca_file=keys / "keys" / "servers-ca.pem",
    )


@pytest.mark.integration
async def test_the_migration_declares_every_stream_over_tls(keys: Path, port: int) -> None:
    settings = bus_settings(keys, port, "migrate")
    seed = settings.nkey_seed_file.read_text()
    async with asyncio.timeout(30):
        bus = await Bus.connect(settings, "migrate", "test", seed=seed)
        try:
            await declare(bus, topics.STREAMS, topics.AUDIT_CONSUMERS, replicas=1)
        finally:
            await bus.close()


@pytest.mark.integration
async def test_an_operator_reads_why_the_certificate_of_NATS_is_refused(
    keys: Path, port: int
) -> None:
    make_certificate(keys, "me", ("operator",))
    settings = OperatorSettings(
        bus=bus_settings(keys, port, "operator", host="127.0.0.2"),
        certificate_file=keys / "me.crt",
        key_file=keys / "me.key",
        timeout_s=3,
    )
    with pytest.raises(BusUnavailable, match=r"does not answer: .*not valid for '127\.0\.0\.2'"):
        await connect(settings, SystemClock())
    right = settings.model_copy(update={"bus": bus_settings(keys, port, "operator")})
    _, bus = await connect(right, SystemClock())
    await bus.close()
