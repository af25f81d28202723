"""``estctl probe`` against a whole suite: a good round, and every fault it is made to see."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.est.client import ESTClient
from estclient.est.keys import key_pem, make_csr, make_key
from estdev.layout import merge
from estdev.local import admin_get
from estdev.operator import make_operator
from estdev.ports import free_port
from estsuite_testing.e2e_stack import POLICY, Stack, start_stack, stop_stack
from estsuite_testing.est_server import CA

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]
STEPS = ["cacerts", "enroll", "repeat", "renew", "chain", "ocsp", "crl", "ledger", "siem"]


@dataclass
class Probing:
    """A suite with a label for the probe, and the settings of a probe that finds nothing wrong."""

    stack: Stack
    folder: Path
    settings: dict[str, Any]

    def write(self, changes: dict[str, Any]) -> Path:
        settings: dict[str, Any] = json.loads(json.dumps(self.settings))
        merge(settings, changes)
        path = self.folder / "probe.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in settings.items() if v is not None}))
        return path

    async def command(self, *words: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await self.stack.suite.spawn("estctl", "probe", *words, stdout=pipe, stderr=pipe)

    async def once(self, **changes: Any) -> tuple[int | None, dict[str, dict[str, Any]]]:
        """Run one round; returns the exit code and the steps by name."""
        path = self.write(changes)
        process = await self.command("--once", "--json", "--config", str(path))
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert b"Traceback" not in out + err
        if not out:
            return process.returncode, {"error": {"text": err.decode()}}
        steps = {step["step"]: step for step in json.loads(out)["steps"]}
        return process.returncode, steps


def _profile(name: str, ocsp_port: int, crl_port: int) -> dict[str, Any]:
    return {
        "name": name,
        "lifetime": "15m",
        "key_algorithms": ["ec-p256"],
        "subject_attributes": ["CN"],
        "san_kinds": ["dns"],
        "ocsp_url": f"http://127.0.0.1:{ocsp_port}/ocsp/{{issuer}}",
        "crl_url": f"http://127.0.0.1:{crl_port}/crl/{{issuer}}.crl",
        "renewal": {"reaction_time": "5m", "overlap": "1m", "mode": "poll"},
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def probing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Probing]:
    folder: Path = tmp_path_factory.mktemp("probe")
    port, unused, admin_port = free_port(), free_port(), free_port()
    names = ["probe", "probe-no-ocsp"]
    policy = yaml.safe_load(POLICY.read_text())
    for name in names:
        policy["labels"][name] = {
            "issuer": "issuing",
            "profiles": [name],
            "authentication": ["secret", "certificate"],
            "retry_after_s": 1,
        }
    policy["rules"] += [
        {
            "name": f"probe-{number}",
            "principal": principal,
            "owner": {"tenant": "operations", "service": "probe"},
            "labels": names,
            "profiles": names,
            "names": {"common_names": ["probe.test"], "dns": ["probe.test"]},
        }
        for number, principal in enumerate(
            (
                {"secret": "load"},
                {"certificate_issuer": "issuing", "certificate_subject": "CN=probe.test"},
            )
        )
    ]
    # The first rule of a principal decides: that of the other tests would refuse the label.
    policy["rules"] = [r for r in policy["rules"] if r["name"] != "load"]
    subject = {"certificate_issuer": "issuing", "certificate_subject": "CN=boss"}
    policy["operators"] = [{"name": "boss", **subject, "roles": ["reader"]}]
    policy_file, profiles_file = folder / "policy.yaml", folder / "profiles.yaml"
    policy_file.write_text(yaml.safe_dump(policy))
    examples = Path(__file__).parents[2] / "libs/estsetup/src/estsetup/examples/profiles.yaml"
    profiles = yaml.safe_load(examples.read_text())["profiles"]
    profiles += [_profile("probe", port, port), _profile("probe-no-ocsp", unused, port)]
    profiles_file.write_text(yaml.safe_dump({"profiles": profiles}))
    group = {
        "labels": sorted(policy["labels"]),
        "profiles": [p["name"] for p in profiles if p["name"] != "operator"],
    }
    overrides = {
        "est-frontend": {"crl_listen": {"port": port, "ocsp": True}, "answer_timeout_s": 2},
        "ca-signer": {
            "profiles_file": str(profiles_file),
            "groups": {"default": group},
            "ocsp": {},
        },
    }
    stack = await start_stack(folder, policy=policy_file, overrides=overrides)
    secret = folder / "secret"
    secret.touch(mode=0o600)
    secret.write_text(stack.secret)
    operator = await make_operator(stack.suite, "CN=boss")
    settings = {
        "server": {
            "urls": [f"https://localhost:{stack.layout.ports.est}"],
            "trust_file": str(stack.layout.root_file),
            "label": "probe",
        },
        "subject": "CN=probe.test",
        "san": ["dns:probe.test"],
        "secret": {"user": "load", "secret_file": str(secret)},
        "revocation": {"require_ocsp": True, "require_crl": True},
        "operator": yaml.safe_load(operator.read_text()),
        "siem": {"file": str(stack.layout.siem_file), "timeout_s": 20},
        "step_timeout_s": 20,
        "every_s": 1,
        "admin": {"port": admin_port},
    }
    try:
        yield Probing(stack, folder, settings)
    finally:
        await stop_stack(stack)


async def test_a_good_round_runs_every_step(probing: Probing) -> None:
    slot = {"name": "slot", "command": ["sh", "-c", 'test -n "$EST_SERIAL"']}
    code, steps = await probing.once(commands=[slot])
    assert {name: step["result"] for name, step in steps.items()} == dict.fromkeys(
        [*STEPS, "command-slot"], "ok"
    ), steps
    assert code == 0
    left = {path.name for path in probing.folder.iterdir()}
    assert left == {"suite", "policy.yaml", "profiles.yaml", "secret", "probe.yaml"}


async def test_an_existing_certificate_is_a_way_in(probing: Probing) -> None:
    server, layout, key = probing.settings["server"], probing.stack.layout, make_key()
    client = ESTClient(
        server["urls"],
        trust=layout.root_file,
        label="probe",
        secret=("load", probing.stack.secret),
    )
    enrolled = await client.simpleenroll(make_csr(key, "CN=probe.test", ["dns:probe.test"]))
    folder = layout.secrets
    certificate_file, key_file = folder / "way-in.pem", folder / "way-in.key"
    certificate_file.write_bytes(enrolled.certificate.public_bytes(Encoding.PEM))
    key_file.touch(mode=0o600)
    key_file.write_bytes(key_pem(key))
    credential = {"certificate_file": str(certificate_file), "key_file": str(key_file)}
    code, steps = await probing.once(secret=None, credential=credential, operator=None, siem=None)
    assert code == 0, steps
    assert steps["ledger"]["result"] == "skipped"


async def test_the_run_form_repeats_rounds_and_exports_metrics(probing: Probing) -> None:
    port = probing.settings["admin"]["port"]
    process = await probing.command("run", "--config", str(probing.write({"siem": None})))
    async with asyncio.timeout(30):
        while not (await admin_get(port, "/readyz")).startswith("ready"):
            await asyncio.sleep(0.2)
    metrics = await admin_get(port, "/metrics")
    values = {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in metrics.splitlines() if line[0] != "#")
    }
    assert values["estctl_probe_last_complete_timestamp_seconds"] > 1e9
    assert values["estctl_probe_last_complete_age_seconds"] < 30
    assert values['estctl_probe_step_seconds_count{step="renew"}'] >= 1
    process.send_signal(signal.SIGTERM)
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0, err
    assert b"\nrenew              ok" in out


@pytest.mark.parametrize(
    ("changes", "step", "code"),
    [
        ({"server": {"label": "probe-no-ocsp"}}, "ocsp", "probe.unreachable"),
        ({"issuer_trust_file": "{other}"}, "cacerts", "client.trust"),
        ({"server": {"trust_file": "{other}"}}, "cacerts", "client.server_away"),
        ({"siem": {"file": "{empty}", "timeout_s": 2}}, "siem", "probe.siem_missing"),
        ({"siem": {"file": "{empty}.absent", "timeout_s": 2}}, "siem", "probe.siem_missing"),
        ({"subject": "CN=stranger.test"}, "enroll", "client.refused"),
        (
            {"commands": [{"name": "slot", "command": ["false"], "timeout_s": 1}]},
            "command-slot",
            "probe.command",
        ),
    ],
)
async def test_each_fault_fails_its_step(
    probing: Probing, tmp_path: Path, changes: dict[str, Any], step: str, code: str
) -> None:
    other, empty = tmp_path / "other.pem", tmp_path / "empty.log"
    other.write_bytes(CA().pem)
    empty.touch()
    text = json.dumps(changes).replace("{other}", str(other)).replace("{empty}", str(empty))
    status, steps = await probing.once(**json.loads(text))
    assert (status, steps[step]["code"]) == (1, code), steps
    others = {s["code"] for name, s in steps.items() if name != step}
    assert others <= {None, code}


async def test_a_stopped_signer_fails_the_enrollment(probing: Probing) -> None:
    await probing.stack.suite.stop_service("ca-signer")
    try:
        status, steps = await probing.once(step_timeout_s=5)
    finally:
        await probing.stack.suite.start_service("ca-signer", "ca-signer", wait=True)
    assert (status, steps["enroll"]["code"]) == (1, "client.pending"), steps
    assert steps["renew"] == {
        "step": "renew",
        "result": "not run",
        "seconds": 0.0,
        "code": None,
        "text": "needs enroll",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"secret": None},
        {"secret": {"user": "load", "secret_file": "/absent"}},
        {"server": {"trust_file": "/absent"}},
        {"subject": "nonsense"},
        {"everyone": 1},
    ],
)
async def test_settings_that_cannot_be_used_give_exit_code_2(
    probing: Probing, changes: dict[str, Any]
) -> None:
    status, steps = await probing.once(**changes)
    assert status == 2
    assert steps["error"]["text"].startswith("estctl: ")
    assert steps["error"]["text"].count("\n") == 1
