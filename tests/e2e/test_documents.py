"""The commands of README, onboarding and runbooks, run as a newcomer runs them: `estsuite up`, a shell.

Every block of commands is run, or is in ``NOT_RUN`` with the reason. The shell finds commands that
are quick to start (``estsuite_testing/command_folder.py``).
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from estsuite_testing.command_folder import command_folder
from estsuite_testing.error_log import ERRORS

pytestmark = pytest.mark.asyncio(loop_scope="module")
ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
COMMANDS = ("ca-signer", "est-renewal", "est-audit", "est-frontend", "estctl", "umask")
PASSPHRASE = "a passphrase of a test"
RUNBOOKS = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "docs/operations/runbooks").glob("*.md")
)
NOT_RUN = {
    "--module /usr/lib/softhsm": "a token: tests/integration/ca_signer/test_token_command.py",
    "keycloak.example": "a Keycloak: tests/integration/est_frontend/test_keycloak.py",
    "submissions list": "an upstream CA: tests/e2e/test_upstream.py",
    "requests approve": "a request that waits: tests/e2e/test_approval.py",
    "bulk-revocation confirm": "a second operator: tests/integration/ca_signer/test_bulk_revocation.py",
    "campaign confirm": "a second operator: tests/e2e/test_campaign.py",
    "replace-expired": "a CA that has expired: tests/e2e/test_expired_ca.py",
    "rollover plan": "a second generation: tests/e2e/test_rollover.py",
    "CA2 --out SERVER": "a second root: tests/e2e/test_rollover.py",
    "make demo": "starts a suite of its own: `.ci/run`",
}


@dataclass
class Home:
    """A newcomer's folder: a running suite, and a shell."""

    folder: Path
    port: int
    nats_port: int
    environment: dict[str, str] = field(default_factory=dict)

    async def shell(self, script: str, *, timeout_s: float = 120) -> str:
        """Run commands as written, ports replaced; returns their output.

        Raises:
            AssertionError: a command of it failed.
        """
        script = script.replace("localhost:8443", f"localhost:{self.port}")
        script = re.sub(r"\.venv/bin/(?!python)", "", script)
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-eo",
            "pipefail",
            "-c",
            script,
            cwd=self.folder,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), timeout_s)
        finally:
            if process.returncode is None:
                process.kill()
        text = output.decode(errors="replace")
        assert process.returncode == 0, f"{script}\n{text}"
        return text

    async def until(
        self, script: str, wanted: str, *, within_s: float = 30, every_s: float = 1
    ) -> str:
        """Repeat commands until their output has a text: records and settings take a moment."""
        text, failure, loop = "", "", asyncio.get_running_loop()
        end = loop.time() + within_s
        while wanted not in text:
            assert loop.time() < end, f"{wanted!r} never came:\n{text}{failure}"
            try:
                text = await self.shell(script)
            except AssertionError as exc:
                failure = str(exc)  # it repeats the script, which may have the text
            await asyncio.sleep(every_s)
        return text


def blocks(page: str, heading: str | None = None) -> list[tuple[str, str]]:
    """Return language and text of a page's blocks, of one section or all."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if heading is not None:
        text = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return [
        (language, re.sub(rf"^{indent}", "", body, flags=re.MULTILINE))
        for indent, language, body in BLOCK.findall(text)
    ]


def commands(page: str, heading: str) -> list[str]:
    """Return the blocks of a section that are commands."""
    return [body for language, body in blocks(page, heading) if language in {"", "sh"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def home(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Home]:
    """A folder with `.venv` and the suite that `make up` starts, on free ports."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".venv").symlink_to(sys.prefix)
    free = [x for name in ("est", "postgres", "nats", "siem") for x in (f"--{name}-port", "0")]
    log = folder / "up.txt"
    with log.open("w") as output:
        up = await asyncio.create_subprocess_exec(
            ".venv/bin/estsuite", "up", *free, cwd=folder, stdout=output, stderr=output
        )
    ERRORS.follow(folder / ".estsuite" / "logs")
    try:
        async with asyncio.timeout(90):
            while "the suite is up" not in log.read_text():
                assert up.returncode is None, log.read_text()
                await asyncio.sleep(0.2)
        shown = log.read_text()
        yield Home(
            folder,
            int(re.findall(r"https://localhost:(\d+)", shown)[0]),
            int(re.findall(r"nats://127.0.0.1:(\d+)", shown)[0]),
            os.environ
            | {
                "PATH": f"{command_folder()}:{sys.prefix}/bin:{os.environ['PATH']}",
                "CA_SIGNER_CONFIG": ".estsuite/config/ca-signer.yaml",
                "EST_RENEWAL_CONFIG": ".estsuite/config/renewal.yaml",
                "EST_AUDIT_CONFIG": ".estsuite/config/audit.yaml",
                "ESTCTL_CONFIG": ".estsuite/config/operator.yaml",
            },
        )
    finally:
        up.send_signal(signal.SIGINT)
        await asyncio.wait_for(up.wait(), 60)
        ERRORS.stopped(folder / ".estsuite" / "logs")


async def test_the_readme_enrolls_renews_and_shows_the_record(home: Home) -> None:
    (first,) = commands("README.md", "A first certificate")
    first = first.replace("https://localhost:8443", f"https://localhost:{home.port}")
    assert "proven to be in use" in await home.until(first, "proven to be in use")
    enroll, renew, show = commands("README.md", "A first certificate with curl")
    assert "subject=" in await home.until(enroll, "web.pem: OK")
    # The blocks are one session in one shell.
    await home.shell(f"{enroll}\n{renew}\nopenssl x509 -in web2.pem -noout")
    await home.until(f"EST=https://localhost:8443/.well-known/est\n{show}", "certificate.issue")


async def test_onboarding_leads_a_service_to_a_certificate_in_every_way(home: Home) -> None:
    rule, *_ = (body for language, body in blocks("docs/onboarding.md") if language == "yaml")
    policy = home.folder / ".estsuite" / "config" / "policy.yaml"
    before, after = policy.read_text().split("\noperators:", 1)
    policy.write_text(f"{before}\n{rule}operators:{after}")
    explain, secret = commands("docs/onboarding.md", "1. A rule and a secret")
    assert "orders-bootstrap" in await home.shell(explain)
    secret = f"rm -f orders.secret\n{secret}"
    again = f"estctl secret revoke --id orders-bootstrap\n{secret}"

    # 2. One line, as soon as the rule is loaded.
    await home.shell(secret)
    (line,) = commands("docs/onboarding.md", "2. In one line")
    start, prove = line.rsplit(".venv/bin/estctl prove", 1)
    await home.until(f"rm -f orders.pem\n{start}", "valid until")
    await home.until(
        f"export EST_URL=https://localhost:8443 EST_TRUST=.estsuite/ca/root.pem EST_LABEL=demo\nestctl prove{prove}",
        "proven to be in use",
    )

    # 2a. curl.
    await home.shell(again)
    (curl,) = commands("docs/onboarding.md", "2a. With curl")
    await home.until(f"{curl}\nopenssl x509 -in orders.pem -noout -subject", "orders.clinic")

    # Renew with curl, as renewal information says.
    ask, renew = commands("docs/onboarding.md", "Renew with curl")
    root = "ROOT=.estsuite/ca/root.pem\n"
    await home.until(f"{root}{ask}", "suggestedWindow")
    await home.shell(f"{root}{ask}\n{renew}\nopenssl x509 -in orders2.pem -noout")

    # 2b. The agent.
    await home.shell(again)
    settings, *bus = (
        b for x, b in blocks("docs/onboarding.md", "2b. With the agent") if x == "yaml"
    )
    (home.folder / "agent.yaml").write_text(settings.replace(":8443", f":{home.port}"))
    yaml.safe_load(settings + bus[0])
    (run,) = commands("docs/onboarding.md", "2b. With the agent")
    await home.shell(
        f"{run.strip()} & agent=$!\n"
        "for _ in $(seq 100); do [ -e credential/current/cert.pem ] && break; sleep 0.2; done\n"
        "kill $agent; wait $agent || true\n"
        "openssl verify -CAfile .estsuite/ca/root.pem -untrusted credential/current/ca.pem"
        " credential/current/cert.pem"
    )

    # 2e. A user's password, by Digest.
    _, rule = (body for x, body in blocks("docs/onboarding.md") if x == "yaml" and "- name" in body)
    with_rule = policy.read_text().replace("\noperators:", f"\n{rule}operators:", 1)
    policy.write_text(
        with_rule.replace("[certificate, secret]", "[certificate, secret, password, digest]", 1)
    )
    add, digest = commands("docs/onboarding.md", "2e. With a user name and a password")
    await home.shell(add)
    await home.until(f"{digest}\nopenssl x509 -in alice.pem -noout -subject", "alice.clinic")

    # 2c. Python, and a server that reloads.
    await home.shell(again)
    (program,) = (b for x, b in blocks("docs/onboarding.md", "2c. With Python") if x == "python")
    (home.folder / "enroll.py").write_text(program.replace(":8443", f":{home.port}"))
    await home.shell(".venv/bin/python enroll.py && openssl x509 -inform DER -in orders.der -noout")
    ((_, reloading),) = blocks("docs/onboarding.md", "Reload without a restart")
    (home.folder / "reload.py").write_text(f"{reloading}assert not certificate.reload()\n")
    await home.shell(".venv/bin/python reload.py")


async def test_the_runbooks_commands_run_as_written(home: Home) -> None:
    await home.shell(f"mkdir -p ca; umask 077; printf '{PASSPHRASE}' > passphrase")
    enroll, renew, _ = commands("README.md", "A first certificate with curl")
    await home.shell(f"{enroll}\n{renew}")
    shown = await home.until("estctl cert list --name web.clinic.example", "serial")
    serial = re.findall(r"serial\W+([0-9a-f]{16,})", shown)[0]
    shutil.copy(next((home.folder / ".estsuite").rglob("*.vkey")), home.folder / "audit.vkey")
    await home.until(  # the first checkpoint takes a minute
        "rm -f first.jsonl last-time.note; est-audit export --out first.jsonl\n"
        "estctl audit verify --export first.jsonl --vkey audit.vkey"
        " --save-checkpoint last-time.note",
        "\nverified: ",
        within_s=120,
        every_s=10,
    )
    # Of onboarding.
    await home.shell("estctl secret revoke --id orders-bootstrap || true; rm -f orders.secret")
    values = {"HEX": serial, "sink siem --from 120000": "sink local-siem --from 1"}
    ran, failed = 0, list[str]()
    for language, block in [block for page in RUNBOOKS for block in blocks(page)]:
        if language not in {"", "sh"} or not block.lstrip().startswith(COMMANDS):
            continue
        if any(mark in block for mark in NOT_RUN):
            continue
        script = "\n".join(
            line for line in block.replace("  #", "\n#").splitlines() if "..." not in line
        )
        for placeholder, value in values.items():
            script = script.replace(placeholder, value)
        try:
            await home.shell(script)
        except AssertionError as exc:
            failed.append(str(exc))
        ran += 1
    assert not failed, "\n\n".join(failed)
    assert ran >= 10


async def test_every_block_is_run_or_says_why_not() -> None:
    for mark, reason in NOT_RUN.items():
        pages = ("README.md", "docs/onboarding.md", *RUNBOOKS)
        assert any(mark in body for page in pages for _, body in blocks(page)), mark
        for path in re.findall(r"tests/\S+\.py", reason):
            assert (ROOT / path).exists(), path
