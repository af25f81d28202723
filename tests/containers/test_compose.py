"""``docker compose up`` after a fresh clone: ``make compose-test``.

    COMPOSE_OVERRIDE    a further compose file, for images of a mirror

Needs a Docker daemon, Compose and the images of ``make images``. The project is ``estsuite-test``,
and its port 8443 must be free.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from estdeploy import compose_rules

from estcore.messages.text import without_surrogates
from estsuite_testing.cluster.load import Client
from estsuite_testing.e2e_stack import certificate_in, make_csr, same_key

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "estsuite-test"
_CLOSING_S = 0.3
"""aiohttp closes connections with TLS a moment after their session."""
pytestmark = pytest.mark.timeout(600)


class Compose:
    """A clone, and the compose command in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.local = folder / "deploy" / "compose" / "local"
        self.secret = ""
        tool = compose_rules.tool(install=False)
        if tool is None:
            pytest.exit("make compose-test: Compose is not installed", returncode=2)
        self._command = [*tool, "-p", PROJECT, "-f", "docker-compose.yml"]
        if override := os.environ.get("COMPOSE_OVERRIDE"):
            self._command += ["-f", override]

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self._command, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, without_surrogates(done.stdout + done.stderr)
        return done

    def up(self) -> None:
        """Start everything, and wait until est-frontend serves."""
        self("up", "-d")
        end = time.monotonic() + 120
        while asyncio.run(self._serves()) != 200:
            assert time.monotonic() < end, self("logs", "--tail", "20").stdout
            time.sleep(1)

    async def _serves(self) -> int:
        try:
            return await self.client().cacerts()
        except (aiohttp.ClientError, OSError):
            return 0
        finally:
            await asyncio.sleep(_CLOSING_S)

    def client(self, secret: str = "") -> Client:
        root = self.local / "config" / "root.pem"
        context = ssl.create_default_context(cafile=str(root))
        return Client(("127.0.0.1", 8443), context, secret=secret, host="localhost")

    def operator(self, *arguments: str) -> dict[str, object]:
        printed = self("run", "--rm", "-T", "estctl", *arguments, "--json").stdout
        found: dict[str, object] = json.loads(printed[printed.index("{") :])
        return found


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    compose = Compose(folder)
    try:
        yield compose
    finally:
        compose("down", "--volumes", "--timeout", "20", check=False)


def enrolled(client: Client, name: str = "web.clinic.example") -> int:
    """Enroll until it is done; returns the status of the last answer."""
    key, csr = make_csr(name)

    async def enroll() -> int:
        status = 0
        for _ in range(30):
            status, _, body = await client.enroll_once(csr)
            if status == 200:
                assert same_key(certificate_in(body), key)
            if status not in {202, 401, 503}:
                break
            await asyncio.sleep(1)
        await asyncio.sleep(_CLOSING_S)
        return status

    return asyncio.run(enroll())


def test_one_command_gives_a_suite_and_an_operator(compose: Compose) -> None:
    compose.up()
    compose.secret = str(compose.operator("secret", "create", "--id", "web-bootstrap")["secret"])
    assert enrolled(compose.client(compose.secret)) == 200
    listed = compose.operator("cert", "list")
    assert "CN=web.clinic.example" in json.dumps(listed)
    exported = compose(
        *("exec", "-T", "audit", "est-audit", "export", "--sealed"),
        *("--config", "/etc/estsuite/audit.yaml", "--out", "-"),
    )
    assert "web.clinic.example" in exported.stdout


def test_containers_see_their_own_secrets_only(compose: Compose) -> None:
    program = "import os; print(sorted(os.listdir('/run/secrets')))"
    for name in ("est-frontend", "renewal", "audit", "ca-signer"):
        printed = compose("exec", "-T", name, "python", "-c", program).stdout
        assert ("issuing.key" in printed) is (name == "ca-signer")
        assert "root.key" not in printed
        assert "owner" not in printed


def test_a_second_up_keeps_keys_data_and_what_a_person_changed(compose: Compose) -> None:
    settings = compose.local / "config" / "audit.yaml"
    changed = settings.read_text() + "# changed by a person\n"
    settings.write_text(changed)
    root = (compose.local / "config" / "root.pem").read_text()
    certificate = (compose.local / "operator" / "operator.pem").read_text()
    compose("down", "--timeout", "20")
    compose.up()
    assert settings.read_text() == changed
    assert "audit.yaml: kept as it was changed" in compose("logs", "setup").stdout
    assert (compose.local / "config" / "root.pem").read_text() == root
    assert enrolled(compose.client(compose.secret)) == 200
    assert (compose.local / "operator" / "operator.pem").read_text() == certificate


def test_a_policy_is_reloaded_while_the_containers_run(compose: Compose) -> None:
    policy = compose.local / "config" / "policy.yaml"
    new = policy.with_suffix(".new")
    new.write_text(
        policy.read_text().replace(
            "common_names: [web.clinic.example]",
            "common_names: [web.clinic.example, hot.clinic.example]",
        )
    )
    new.replace(policy)  # as an editor does: a mount of the file alone would keep the old one
    end = time.monotonic() + 60
    while (status := enrolled(compose.client(compose.secret), "hot.clinic.example")) != 200:
        assert time.monotonic() < end, status
        time.sleep(2)


def test_services_stop_in_order_and_say_so(compose: Compose) -> None:
    compose("stop", "--timeout", "30")
    for name in ("est-frontend", "ca-signer", "renewal", "audit"):
        log = compose("logs", "--tail", "3", name).stdout
        assert '"message":"service stopped"' in log, log
        assert '"level":"error"' not in log
