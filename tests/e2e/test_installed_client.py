"""The distributions for devices: built, installed into an empty environment, and enrolling."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from estsuite_testing.e2e_stack import Stack
from estsuite_testing.installing import run_installing

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).parent / "uv"
OF_A_SERVER = {
    *("estsuite-frontend", "estsuite-signer", "estsuite-renewal", "estsuite-audit"),
    *("estsuite-dev", "estsuite-faults", "sqlalchemy", "asyncpg", "alembic", "pyopenssl"),
}
ENROLLING = """
import asyncio, sys
from pathlib import Path
from estclient.est.client import ESTClient
from estclient.est.keys import make_csr, make_key

async def main(url, trust, secret_file):
    secret = Path(secret_file).read_text().strip()
    client = ESTClient(url, trust=Path(trust), secret=("load", secret))
    assert await client.cacerts()
    enrolled = await client.simpleenroll(make_csr(make_key(), "CN=dev-api", []))
    sys.stdout.buffer.write(enrolled.der)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What ``make dist`` builds: a wheel and an sdist of each of the two distributions."""
    folder = tmp_path_factory.mktemp("dist")
    done = run_installing(
        ["make", "-C", ROOT, "dist", f"DIST={folder}"], environment=os.environ, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    built = sorted(path.name.partition("-")[0] for path in folder.glob("est*"))
    assert built == ["estsuite_client"] * 2 + ["estsuite_core"] * 2
    return sorted(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def device(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of an environment that held nothing before."""
    home = tmp_path_factory.mktemp("device") / "venv"
    python = getattr(sys, "_base_executable", sys.executable)
    environment = {k: v for k, v in os.environ.items() if k not in {"UV_PROJECT_ENVIRONMENT"}}
    for arguments in (
        ["venv", "--quiet", "--python", python, home],
        ["pip", "install", "--quiet", "--python", home / "bin" / "python", *wheels],
    ):
        done = run_installing([UV, *arguments], environment=environment, cwd=home.parent)
        assert done.returncode == 0, done.stderr
    return home / "bin"


def run(device: Path, *command: object) -> bytes:
    done = subprocess.run(
        [str(device / str(command[0])), *map(str, command[1:])],
        capture_output=True,
        check=False,
        cwd=device.parent,
        env={"PATH": str(device)},
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


async def test_nothing_of_a_server_is_installed_on_a_device(device: Path) -> None:
    listed = subprocess.run(
        [UV, "pip", "list", "--format=json", "--python", device / "python"],
        capture_output=True,
        check=True,
    )
    installed = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert {"estsuite-client", "estsuite-core"} <= installed
    assert not installed & OF_A_SERVER
    commands = {path.name for path in device.iterdir()}
    assert "estctl" in commands
    assert not commands & {"ca-signer", "est-frontend", "est-renewal", "est-audit", "estsuite"}


async def test_the_client_api_enrolls(device: Path, stack: Stack, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(stack.secret)
    secret.chmod(0o600)
    url = f"https://localhost:{stack.layout.ports.est}"
    arguments = ("python", "-c", ENROLLING, url, stack.layout.root_file, secret)
    der = await asyncio.to_thread(run, device, *arguments)
    subject = x509.load_der_x509_certificate(der).subject
    assert subject.rfc4514_string() == "CN=dev-api"


async def test_estctl_pins_the_root_and_its_agent_enrolls(
    device: Path, stack: Stack, tmp_path: Path
) -> None:
    url = f"https://localhost:{stack.layout.ports.est}"
    root = x509.load_pem_x509_certificate(stack.layout.root_file.read_bytes())
    fingerprint = root.fingerprint(hashes.SHA256()).hex()
    pinned, secret = tmp_path / "root.pem", tmp_path / "secret"
    await asyncio.to_thread(
        run,
        device,
        *("estctl", "trust", "--url", url, "--out", pinned, "--fingerprint", fingerprint),
    )
    secret.write_text(stack.secret)
    secret.chmod(0o600)
    config = tmp_path / "agent.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "server": {"urls": [url], "trust_file": str(pinned)},
                "store": str(tmp_path / "store"),
                "bootstrap": {
                    "subject": "CN=dev-agent",
                    "user": "load",
                    "secret_file": str(secret),
                },
            }
        )
    )
    agent = subprocess.Popen(
        [device / "estctl", "agent", "--config", config], env={"PATH": str(device)}, cwd=tmp_path
    )
    certificate = tmp_path / "store" / "current" / "cert.pem"
    try:
        deadline = time.monotonic() + 60
        while not certificate.exists() and time.monotonic() < deadline:
            assert agent.poll() is None
            await asyncio.sleep(0.2)
    finally:
        agent.terminate()
        code = await asyncio.to_thread(agent.wait, 30)
    assert code == 0
    found = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
    assert found.subject.rfc4514_string() == "CN=dev-agent"
