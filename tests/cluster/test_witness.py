"""A witness in a namespace of its own cosigns the audit log of the suite: components/est-witness.

Its key is its own, and so is the authority of its TLS certificate: nothing of it comes from the suite.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from estsuite_testing.cluster.installation import Installation, until
from estsuite_testing.token_issuer import self_signed

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]
BIN = Path(sys.executable).parent
SPACE = "est-witness"
HOST = f"est-witness.{SPACE}.svc"
NAME = "witness.example.org/est"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def witness(cluster: Installation) -> AsyncIterator[str]:
    """The component with this log in its settings, and audit that asks it; its verifier key."""
    k8s = cluster.root / "deploy" / "k8s"
    await cluster.kubectl("delete", "namespace", SPACE, "--ignore-not-found", timeout_s=300)
    await cluster.install()
    folder = cluster.folder / "witness"
    folder.mkdir(exist_ok=True)
    key = folder / "witness.key"
    if key.exists():
        key.unlink()
    keygen = [str(BIN / "est-witness"), "keygen", "--name", NAME, "--out", str(key)]
    verifier = subprocess.run(keygen, capture_output=True, check=True, text=True).stdout.strip()
    await apply_component(cluster, folder)

    trust = json.dumps({"data": {"witness-ca.pem": (folder / "tls.crt").read_text()}})
    await cluster.kubectl("patch", "configmap", "estsuite-trust", "-p", trust)
    settings = yaml.safe_load((k8s / "base" / "config" / "audit.yaml").read_text())
    settings["witnesses"] = [
        {
            "url": f"https://{HOST}:8460",
            "vkey": verifier,
            "ca_file": "/etc/estsuite-trust/witness-ca.pem",
        }
    ]
    cluster.audit = yaml.safe_dump(settings)
    cluster.components = [*cluster.components, k8s / "components" / "witnessed"]
    await cluster.apply()
    await cluster.ready("audit")
    yield verifier
    if not os.environ.get("CLUSTER_KEEP"):
        await cluster.kubectl("delete", "namespace", SPACE, timeout_s=300)


async def apply_component(cluster: Installation, folder: Path) -> None:
    """Apply the component as an overlay of the team of the witness has it."""
    k8s = cluster.root / "deploy" / "k8s"
    component = k8s / "components" / "est-witness"
    self_signed(folder / "tls.crt", folder / "tls.key", HOST)
    settings = yaml.safe_load((component / "est-witness.yaml").read_text())
    settings |= {"name": NAME, "logs": [(cluster.keys / "audit.vkey").read_text().strip()]}
    (folder / "est-witness.yaml").write_text(yaml.safe_dump(settings))
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(k8s / "overlays" / "est-witness", folder)],
        "configMapGenerator": [
            {
                "name": "est-witness-config",
                "namespace": SPACE,
                "behavior": "replace",
                "files": ["est-witness.yaml"],
            }
        ],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    await cluster.kubectl("apply", "-f", str(component / "namespace.yaml"))
    secret = ("create", "secret", "-n", SPACE)
    await cluster.kubectl(
        *(*secret, "generic", "est-witness"), f"--from-file=witness.key={folder}/witness.key"
    )
    pair = (f"--cert={folder}/tls.crt", f"--key={folder}/tls.key")
    await cluster.kubectl(*secret, "tls", "est-witness-tls", *pair)
    await cluster.kubectl("apply", "-n", SPACE, "-f", "-", given=await cluster.kustomized(folder))
    rollout = ("rollout", "status", "statefulset/est-witness", "-n", SPACE, "--timeout=180s")
    await cluster.kubectl(*rollout, timeout_s=190)


async def size_seen(cluster: Installation) -> int:
    """Return the size of the newest checkpoint that the witness cosigned."""
    program = (
        "import urllib.request as u;"
        "print(u.urlopen('http://127.0.0.1:9100/metrics').read().decode())"
    )
    arguments = ("exec", "-n", SPACE, "est-witness-0", "--", "python", "-c", program)
    text = (await cluster.kubectl(*arguments)).stdout.decode()
    lines = [line for line in text.splitlines() if line.startswith("est_witness_log_size{")]
    return int(float(lines[0].split()[-1])) if lines else 0


async def test_checkpoints_are_cosigned_by_the_key_of_the_witness(
    cluster: Installation, witness: str
) -> None:
    async def cosigned() -> bool:
        return await size_seen(cluster) > 0

    await until(cosigned, 120, "the witness cosigned a checkpoint")
    exported = cluster.folder / "witnessed.jsonl"
    verifier = (cluster.keys / "audit.vkey").read_text().strip()

    async def verified() -> bool:
        sealed = ("est-audit", "export", "--sealed", "--out", "-")
        exported.write_bytes(await cluster.exec("deployment/audit", *sealed))
        done = await asyncio.to_thread(verify, exported, verifier, witness)
        assert done.returncode == 0, done.stdout + done.stderr
        return NAME in done.stdout

    await until(verified, 60, "the export has its cosignature")


def verify(export: Path, log: str, witness: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "est-audit"), "verify", "--export", str(export), "--vkey", log]
    return subprocess.run(
        [*command, "--witness", witness], capture_output=True, text=True, check=False
    )


async def test_its_memory_outlives_its_pod(cluster: Installation, witness: str) -> None:
    before = await size_seen(cluster)
    await cluster.kubectl("delete", "pod", "est-witness-0", "-n", SPACE)
    rollout = ("rollout", "status", "statefulset/est-witness", "-n", SPACE, "--timeout=180s")
    await cluster.kubectl(*rollout, timeout_s=190)
    await cluster.kubectl("rollout", "restart", "deployment/audit")
    await cluster.ready("audit")

    async def goes_on() -> bool:
        return await size_seen(cluster) > before

    await until(goes_on, 120, "the witness continues the log that it saw")


async def test_the_pod_is_confined(cluster: Installation, witness: str) -> None:
    program = (
        "import os, json; s = dict(l.split(':', 1) for l in open('/proc/self/status'));"
        "print(json.dumps([os.getuid(), s['CapEff'].strip(), os.access('/', os.W_OK),"
        " os.path.exists('/var/run/secrets/kubernetes.io')]))"
    )
    arguments = ("exec", "-n", SPACE, "est-witness-0", "--", "python", "-c", program)
    printed = json.loads((await cluster.kubectl(*arguments)).stdout)
    assert printed == [10001, "0000000000000000", False, False]
