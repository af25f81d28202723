"""The suite on a real Kubernetes: installed as deploy/README.md says, disturbed, and read back.

The tests run in the order of this file. What clients got is compared with ledger and audit log at
the end: nothing is lost, nothing is issued twice.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from estsuite_testing.cluster.installation import (
    NAMESPACE,
    SERVERS,
    SERVICES,
    Installation,
    is_ready,
    names_of,
    until,
)
from estsuite_testing.cluster.load import BROKEN, Client, Load
from estsuite_testing.cluster.operators import enroll_operator, new_secret
from estsuite_testing.cluster.records import assert_records_agree, until_recorded
from estsuite_testing.e2e_stack import make_csr

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

CONFIG = "/etc/estsuite"
EXPECTED = {"200", "202", "503"}


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: Installation) -> Client:
    secret = (cluster.folder / "secret").read_text()
    return await Client.of(cluster, secret)


@pytest_asyncio.fixture(loop_scope="session")
async def load(cluster: Installation, client: Client) -> AsyncIterator[Load]:
    """Four enrollments a second while a test runs; each ends with a certificate."""
    load, begun = Load(client, per_second=4), time.monotonic()
    async with load:
        await asyncio.sleep(2)
        yield load
        # Clients came all the time, not only before the test.
        assert load.begun > 2 * (time.monotonic() - begun)
    sys.stdout.write(load.report() + "\n")
    assert len(load.serials) == load.begun > 0
    assert not cluster.serials & {*load.serials}
    cluster.received(load.serials)


async def test_services_wait_for_servers_and_for_the_migration(cluster: Installation) -> None:
    """Applied before anything else is there, they wait, unready, and do not crash."""
    await cluster.apply_keys()
    await cluster.apply()
    await cluster.ready(*SERVERS)

    async def admin_ports_are_open() -> bool:
        pods = [pod for name in SERVICES for pod in await cluster.pods(name)]
        started = [
            s.get("started") for pod in pods for s in pod["status"].get("containerStatuses", [])
        ]
        return len(started) >= len(SERVICES) and all(started)

    await until(admin_ports_are_open, 180, "every service alive")
    await asyncio.sleep(15)
    assert not any((await cluster.restarts()).values())
    for name in SERVICES:
        assert not any(is_ready(pod) for pod in await cluster.pods(name)), name
    await cluster.migrate("migrate-1")
    await cluster.ready()
    assert not any((await cluster.restarts()).values())


async def test_pods_are_confined(cluster: Installation) -> None:
    """The namespace enforces Pod Security "restricted", and inside a pod it shows."""
    program = (
        "import os, json; s = dict(l.split(':', 1) for l in open('/proc/self/status'));"
        "print(json.dumps({'uid': os.getuid(), **{k: s[k].strip() for k in"
        " ('CapEff', 'NoNewPrivs', 'Seccomp')},"
        " 'root': os.access('/', os.W_OK), 'opt': os.access('/opt/estsuite', os.W_OK),"
        " 'token': os.path.exists('/var/run/secrets/kubernetes.io')}))"
    )
    for name in SERVICES:
        printed = await cluster.exec(f"deployment/{name}", "python", "-c", program)
        assert json.loads(printed) == {
            "uid": 10001,
            "CapEff": "0000000000000000",
            "NoNewPrivs": "1",
            "Seccomp": "2",
            "root": False,
            "opt": False,
            "token": False,
        }, name
    refused = await cluster.kubectl(
        *("run", "ordinary", "--image=estsuite/audit:0.1.0", "--restart=Never"), check=False
    )
    assert refused.returncode != 0
    assert b'violates PodSecurity "restricted' in refused.stderr


async def test_an_operator_is_made_and_gives_commands(cluster: Installation) -> None:
    await enroll_operator(cluster)
    made = await new_secret(cluster)
    (cluster.folder / "secret").touch(mode=0o600)
    (cluster.folder / "secret").write_text(made)
    listed = await cluster.exec("estctl-0", "estctl", "cert", "list", "--json")
    assert "CN=local operator" in listed.decode()


async def test_clients_enroll_from_outside(cluster: Installation, client: Client) -> None:
    assert await client.cacerts() == 200

    async def known() -> bool:  # front ends learn the secret within a second or two
        status, _, _ = await client.enroll_once(make_csr("other.clinic.example")[1])
        assert status in {401, 403}, status
        return status == 403

    await until(known, 20, "the secret is known")
    async with Load(client, per_second=4) as load:
        await asyncio.sleep(3)
    assert {*load.answers} == {"200"}, load.report()
    cluster.received(load.serials)


async def test_a_changed_policy_is_applied_again_and_again(
    cluster: Installation, load: Load
) -> None:
    policy = cluster.root / "deploy" / "k8s" / "base" / "config" / "policy.yaml"
    document = yaml.safe_load(policy.read_text())
    for name in ("one.clinic.example", "two.clinic.example"):
        document["rules"][0]["names"]["dns"].append(name)
        cluster.policy = yaml.safe_dump(document)
        await cluster.apply()
        await cluster.ready(*SERVICES)
    assert {*load.answers} <= EXPECTED, load.report()


async def test_each_service_scales_by_itself(cluster: Installation, load: Load) -> None:
    for scaled in ({"est_frontend": 3}, {"ca_signer": 2}, {"renewal": 2}, {"audit": 2}):
        await cluster.scale(**scaled)
        ((name, count),) = scaled.items()
        assert len(await cluster.pods(name.replace("_", "-"))) == count
    # One audit writes, the other stands by.
    roles = []
    for pod in names_of(await cluster.pods("audit")):
        metrics = (
            "import urllib.request as u;"
            "print(u.urlopen('http://127.0.0.1:9100/metrics').read().decode())"
        )
        text = (await cluster.exec(pod, "python", "-c", metrics)).decode()
        roles += [li for li in text.splitlines() if li.startswith("est_audit_writer ")]
    assert sorted(line.split()[1] for line in roles) == ["0.0", "1.0"]
    assert {*load.answers} <= EXPECTED, load.report()


async def test_a_rolling_update_loses_nothing(cluster: Installation, load: Load) -> None:
    for name in SERVICES:
        await cluster.kubectl("rollout", "restart", f"deployment/{name}")
    await cluster.ready(*SERVICES)
    assert {*load.answers} <= EXPECTED, load.report()
    assert not any((await cluster.restarts()).values())


@pytest.mark.parametrize("name", SERVICES)
async def test_a_pod_is_killed(cluster: Installation, load: Load, name: str) -> None:
    """Without notice: connections in hand may break, and clients repeat."""
    victim = names_of(await cluster.pods(name))[0]
    await cluster.kubectl("delete", "pod", victim, "--grace-period=0", "--force")
    await cluster.ready(name)
    assert {*load.answers} <= {*EXPECTED, *BROKEN}, load.report()


@pytest.mark.parametrize("name", ["ca-signer", "est-frontend"])
async def test_a_drain_respects_the_budget(cluster: Installation, load: Load, name: str) -> None:
    pods = names_of(await cluster.pods(name))
    assert [await cluster.evict(pod) for pod in pods[:2]] == [201, 429]
    await cluster.ready(name)
    assert await cluster.evict(pods[1]) == 201
    await cluster.ready(name)
    assert {*load.answers} <= EXPECTED, load.report()


async def test_NATS_goes_away_and_comes_back(
    cluster: Installation, client: Client, load: Load
) -> None:
    await cluster.scale(nats=0)
    await asyncio.sleep(20)
    # Longer than readiness needs to fail: the Service still has its front ends.
    assert all(is_ready(pod) for pod in await cluster.pods("est-frontend"))
    assert await client.cacerts() == 200
    status, after, body = await client.enroll_once(make_csr("web.clinic.example")[1])
    assert (status, after > 0) == (503, True), body
    await cluster.scale(nats=1)
    await cluster.ready()
    assert {*load.answers} <= EXPECTED, load.report()


async def test_PostgreSQL_goes_away_and_comes_back(cluster: Installation, load: Load) -> None:
    await cluster.scale(postgres=0)
    await asyncio.sleep(20)
    assert all(is_ready(pod) for pod in await cluster.pods("est-frontend"))
    await cluster.scale(postgres=1)
    await cluster.ready()
    assert {*load.answers} <= EXPECTED, load.report()


async def test_the_nightly_check_finds_nothing(cluster: Installation) -> None:
    await cluster.kubectl("create", "job", "check-1", "--from=cronjob/check-store")
    await cluster.kubectl(
        "wait", "--for=condition=complete", "job/check-1", "--timeout=120s", timeout_s=130
    )


async def test_a_backup_is_restored(cluster: Installation, client: Client, tmp_path: Path) -> None:
    """A dump of the ledger, certificates after it, the loss, the dump, and reconcile."""
    user = ("-U", "postgres", "-h", "127.0.0.1", "-p", await postgres_port(cluster), "estsuite")
    with_password = 'PGPASSWORD="$(cat /run/secrets/postgres-superuser.password)" exec "$@"'
    shell = ("sh", "-c", with_password, "sh")
    dump = await cluster.exec("postgres-0", *shell, "pg_dump", "-n", "ca_signer", *user)
    async with Load(client, per_second=4) as load:
        await asyncio.sleep(5)
    cluster.received(load.serials)
    # Everything that was issued is on record before the ledger is lost.
    exported, verifier = tmp_path / "audit.jsonl", (cluster.keys / "audit.vkey").read_text().strip()
    await until_recorded(cluster, exported)
    await cluster.kubectl("scale", "deployment/ca-signer", "--replicas=0")
    lose = "drop schema ca_signer cascade; create schema ca_signer authorization ca_signer_owner;"
    await cluster.exec("postgres-0", *shell, "psql", "-v", "ON_ERROR_STOP=1", "-c", lose, *user)
    restore = ("psql", "-q", "-v", "ON_ERROR_STOP=1", *user)
    text = dump.replace(b"CREATE SCHEMA ca_signer;", b"")
    await cluster.exec("postgres-0", *shell, *restore, given=text)
    await cluster.kubectl("scale", "deployment/ca-signer", "--replicas=1")

    async def refuses() -> bool:
        pods = await cluster.pods("ca-signer")
        return bool(pods) and "run ca-signer reconcile" in await cluster.logs(
            pods[0]["metadata"]["name"]
        )

    await until(refuses, 120, "ca-signer sees that its ledger is old")
    pod = names_of(await cluster.pods("ca-signer"))[0]
    reconcile = (
        f"cat > /tmp/audit.jsonl && ca-signer reconcile --export /tmp/audit.jsonl --vkey {verifier}"
    )
    await cluster.exec(pod, "sh", "-c", reconcile, given=exported.read_bytes())
    await cluster.ready()
    async with Load(client, per_second=4) as load:
        await asyncio.sleep(3)
    cluster.received(load.serials)


async def postgres_port(cluster: Installation) -> str:
    """Return the port of the server itself, which may stand behind a front for TLS."""
    pod = await cluster.get("pod", "postgres-0")
    arguments = pod["spec"]["containers"][0]["args"]
    ports = [a.partition("port=")[2] for a in arguments if a.startswith("-cport=")]
    return ports[0] if ports else "5432"


async def test_ledger_and_audit_log_agree_with_what_clients_have(
    cluster: Installation, tmp_path: Path
) -> None:
    await assert_records_agree(cluster, tmp_path)


async def test_a_service_account_token_enrolls_its_own_name(
    cluster: Installation, client: Client
) -> None:
    """components/pod-tokens: the keys come from the API server of this cluster."""
    k8s = cluster.root / "deploy" / "k8s"
    discovery = await cluster.kubectl("get", "--raw", "/.well-known/openid-configuration")
    settings = yaml.safe_load((k8s / "base" / "config" / "est-frontend.yaml").read_text())
    settings["token_issuers"] = [
        {
            "id": "cluster",
            "kind": "kubernetes",
            "issuer": json.loads(discovery.stdout)["issuer"],
            "jwks_url": "https://kubernetes.default.svc/openid/v1/jwks",
            "audience": "est",
            "ca_file": "/etc/estsuite-kubernetes/ca.crt",
        }
    ]
    policy = yaml.safe_load((k8s / "base" / "config" / "policy.yaml").read_text())
    policy["labels"]["services"]["authentication"].append("token")
    account = "{kubernetes.io.serviceaccount.name}"
    policy["rules"].append(
        {
            "name": "pods",
            "principal": {
                "token": {
                    "issuer": "cluster",
                    "claims": {"kubernetes.io.namespace": NAMESPACE},
                    "profiles_by_role": False,
                }
            },
            "owner": {"tenant": "pods", "service": account},
            "labels": ["services"],
            "profiles": ["service-mtls"],
            "names": {"common_names": [f"{account}.clinic.example"]},
        }
    )
    cluster.front_end, cluster.policy = yaml.safe_dump(settings), yaml.safe_dump(policy)
    cluster.components = [k8s / "components" / "pod-tokens"]
    await cluster.apply()
    await cluster.ready("est-frontend", "ca-signer")
    created = await cluster.kubectl("create", "token", "estctl", "--audience=est")
    client.token = created.stdout.decode().strip()

    async def accepted() -> bool:  # pods of before serve for some seconds more
        status, _, body = await client.enroll_once(make_csr("estctl.clinic.example")[1])
        assert status in {200, 401}, body
        return status == 200

    await until(accepted, 30, "tokens of pods are accepted")
    status, _, body = await client.enroll_once(make_csr("other.clinic.example")[1])
    assert status == 403, body


async def test_the_namespace_holds_no_job_that_an_apply_would_change(
    cluster: Installation,
) -> None:
    await cluster.apply()
    jobs = await cluster.get("jobs")
    assert {job["metadata"]["name"] for job in jobs["items"]} >= {"migrate-1", "check-1"}
    assert (await cluster.get("namespace", NAMESPACE))["status"]["phase"] == "Active"
