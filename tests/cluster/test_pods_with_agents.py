"""The agent in pods: the examples of deploy/k8s/examples and docs/onboarding/kubernetes.md.

Certificates live two minutes here. While they are rotated, clients connect all the time: no
handshake may fail, and an established connection goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
import yaml
from cryptography import x509

from estsuite_testing.cluster.installation import Installation, is_ready, names_of, until
from estsuite_testing.cluster.load import Client
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.reload.pages import Page

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

PODS, NODES = "clinic", "est-nodes"
SAN = "orders.clinic.svc"
EXAMPLES = {PODS: "agent-sidecar", NODES: "agent-daemonset"}
Object = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pods(cluster: Installation) -> AsyncIterator[Installation]:
    """The suite as the page configures it, and both examples applied to it."""
    await configure(cluster)
    for namespace, example in EXAMPLES.items():
        await apply(cluster, namespace, example)
    yield cluster
    if not os.environ.get("CLUSTER_KEEP"):
        # The folder of a node stays otherwise, with certificates of a CA that is gone.
        empty = ("sh", "-c", "rm -rf /var/lib/est-node/*")
        for agent in names_of(await pods_of(cluster, NODES, "est-agent")):
            await exec_in(cluster, NODES, agent, *empty)
        for namespace in EXAMPLES:
            await cluster.kubectl("delete", "namespace", namespace, timeout_s=300)


async def configure(cluster: Installation) -> None:
    """Install the suite where it is not yet; add the page's issuer and rules, and short lives."""
    k8s = cluster.root / "deploy" / "k8s"
    settings, rules = map(yaml.safe_load, Page.read("kubernetes.md", {}).yaml())
    discovery = await cluster.kubectl("get", "--raw", "/.well-known/openid-configuration")
    settings["token_issuers"][0]["issuer"] = json.loads(discovery.stdout)["issuer"]
    base = k8s / "base" / "config"
    cluster.front_end = yaml.safe_dump(
        yaml.safe_load((base / "est-frontend.yaml").read_text()) | settings
    )
    policy = yaml.safe_load((base / "policy.yaml").read_text())
    policy["labels"]["services"]["authentication"].append("token")
    policy["rules"] += rules["rules"]
    cluster.policy = yaml.safe_dump(policy)
    profiles = yaml.safe_load((base / "profiles.yaml").read_text())
    for profile in profiles["profiles"]:
        if profile["name"] in {"service-mtls", "pod"}:
            profile |= {"lifetime": "120s", "backdate": "none"}
            profile["renewal"] |= {"reaction_time": "20s", "overlap": "15s"}
    cluster.profiles = yaml.safe_dump(profiles)
    cluster.components = [k8s / "components" / "pod-tokens"]
    await cluster.install()


async def apply(cluster: Installation, namespace: str, example: str) -> None:
    """Apply an example by the commands of the page."""
    folder = cluster.root / "deploy" / "k8s" / "examples" / example
    await cluster.kubectl("delete", "namespace", namespace, "--ignore-not-found", timeout_s=300)
    await cluster.kubectl("apply", "-n", namespace, "-f", str(folder / "namespace.yaml"))
    root = f"root.pem={cluster.root_certificate}"
    await cluster.kubectl(
        *("create", "configmap", "est-root", "-n", namespace, "--from-file", root)
    )
    rendered = await cluster.kustomized(folder)
    await cluster.kubectl("apply", "-n", namespace, "-f", "-", given=rendered)


async def pods_of(cluster: Installation, namespace: str, name: str) -> list[Object]:
    listed = await cluster.get("pods", "-n", namespace, "-l", f"app.kubernetes.io/name={name}")
    items: list[Object] = listed["items"]
    return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]


async def exec_in(cluster: Installation, namespace: str, pod: str, *command: str) -> str:
    arguments = ("exec", "-n", namespace, pod, "--", *command)
    return (await cluster.kubectl(*arguments)).stdout.decode()


async def log_of(cluster: Installation, namespace: str, pod: str) -> str:
    arguments = ("logs", "-n", namespace, pod, "-c", "est-agent")
    return (await cluster.kubectl(*arguments, check=False)).stdout.decode()


@dataclass
class Connections:
    """Clients of the application: a new connection each 0.1 s, and one that stays."""

    address: tuple[str, int]
    context: ssl.SSLContext
    presented: dict[str, set[int]] = field(default_factory=dict)
    """Serial numbers by common name."""
    count: int = 0
    failures: list[str] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Connections]:
        reader, writer = await self._connect()
        established = self._seen(writer)
        task = asyncio.create_task(self._repeat())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert await self._request(reader, writer) == b"ok\n"
        assert self._seen(writer) == established
        writer.close()
        sys.stdout.write(f"{self.count} connections, failed {self.failures}\n")

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(15):
            return await asyncio.open_connection(
                *self.address, ssl=self.context, server_hostname=SAN
            )

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        async with asyncio.timeout(15):
            writer.write(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            return await reader.readexactly(3)

    def _seen(self, writer: asyncio.StreamWriter) -> tuple[str, int]:
        octets = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        certificate = x509.load_der_x509_certificate(octets)
        (name,) = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return str(name.value), certificate.serial_number

    async def _repeat(self) -> None:
        while True:
            self.count += 1
            try:
                reader, writer = await self._connect()
                name, serial = self._seen(writer)
                self.presented.setdefault(name, set()).add(serial)
                assert await self._request(reader, writer) == b"ok\n"
                writer.close()
            except (OSError, TimeoutError, asyncio.IncompleteReadError, AssertionError) as exc:
                self.failures.append(repr(exc))
            await asyncio.sleep(0.1)


async def node_port(cluster: Installation) -> tuple[str, int]:
    """Return where the application is reached from outside."""
    patch = json.dumps({"spec": {"type": "NodePort"}})
    await cluster.kubectl("patch", "service", "orders", "-n", PODS, "-p", patch)
    service = await cluster.get("service", "orders", "-n", PODS)
    node = (await cluster.get("nodes"))["items"][0]
    addresses = {a["type"]: a["address"] for a in node["status"]["addresses"]}
    return addresses["InternalIP"], service["spec"]["ports"][0]["nodePort"]


async def test_a_pod_of_another_service_account_gets_no_certificate(pods: Installation) -> None:
    """The same pod, with an account that no rule names: it waits, and its application never runs."""
    deployment = await pods.get("deployment", "orders", "-n", PODS)
    template = deployment["spec"]["template"]
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "other"}}
    pod: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "other", "labels": {"app.kubernetes.io/name": "other"}},
        "spec": template["spec"] | {"serviceAccountName": "other", "serviceAccount": "other"},
    }
    del pod["spec"]["topologySpreadConstraints"]
    both = json.dumps({"apiVersion": "v1", "kind": "List", "items": [account, pod]})
    await pods.kubectl("apply", "-n", PODS, "-f", "-", given=both.encode())

    async def refused() -> bool:
        return "policy.no_rule" in await log_of(pods, PODS, "other")

    await until(refused, 120, "the refusal is in the log of the agent")
    listed = "import os; print(os.path.exists('/run/est/orders/current'))"
    arguments = ("exec", "-n", PODS, "other", "-c", "est-agent", "--", "python", "-c", listed)
    assert (await pods.kubectl(*arguments)).stdout.decode().strip() == "False"
    found = await pods.get("pod", "other", "-n", PODS)
    assert not is_ready(found)
    (application,) = found["status"]["containerStatuses"]
    assert application["started"] is False
    assert "waiting" in application["state"]

    async def on_record() -> bool:
        search = (
            *("est-audit", "search", "--format", "json", "--phase", "denied"),
            *("--principal", "token:cluster/system:serviceaccount:clinic:other"),
            *("--since", found["metadata"]["creationTimestamp"]),
        )
        return b"policy.no_rule" in await pods.exec("deployment/audit", *search)

    await until(on_record, 60, "the refusal is on record")
    await pods.kubectl("delete", "pod", "other", "-n", PODS, "--wait=false")


async def test_a_sidecar_rotates_and_no_handshake_fails(pods: Installation) -> None:
    rollout = ("rollout", "status", "deployment/orders", "-n", PODS, "--timeout=180s")
    await pods.kubectl(*rollout, timeout_s=190)
    names = names_of(await pods_of(pods, PODS, "orders"))
    assert len(names) == 2
    context = ssl.create_default_context(cafile=str(pods.root_certificate))
    clients = Connections(await node_port(pods), context)

    async def reached() -> bool:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(*clients.address)
            writer.close()
            return True
        return False

    await until(reached, 30, "the NodePort", every_s=0.2)
    async with clients.running():

        async def rotated() -> bool:
            return all(len(clients.presented.get(name, ())) >= 2 for name in names)

        await until(rotated, 300, "each pod presents a second certificate")

        async def proven() -> bool:
            logs = [await log_of(pods, PODS, name) for name in names]
            return all('"proven"' in log for log in logs)

        await until(proven, 60, "the new certificates are proven to be in use")
    assert clients.failures == []
    assert {*clients.presented} == {*names}
    assert clients.count > 20
    for pod in await pods_of(pods, PODS, "orders"):
        statuses = pod["status"]["initContainerStatuses"] + pod["status"]["containerStatuses"]
        assert [status["restartCount"] for status in statuses] == [0, 0]


async def test_key_and_certificate_of_a_sidecar_are_in_memory_and_its_own(
    pods: Installation,
) -> None:
    name = names_of(await pods_of(pods, PODS, "orders"))[0]
    program = (
        "import json, os; m = dict(l.split()[1:3] for l in open('/proc/mounts'));"
        "k = os.stat('/run/est/orders/current/key.pem');"
        "print(json.dumps([m['/run/est'], oct(k.st_mode & 0o777), k.st_uid,"
        " os.access('/', os.W_OK), os.access('/run/est', os.W_OK),"
        " os.path.exists('/run/secrets/est'),"
        " os.path.exists('/var/run/secrets/kubernetes.io')]))"
    )
    printed = await pods.kubectl(
        *("exec", "-n", PODS, name, "-c", "orders", "--", "python", "-c", program)
    )
    assert json.loads(printed.stdout) == ["tmpfs", "0o600", 10001, False, False, False, False]


async def test_an_agent_on_each_node_keeps_the_certificate_of_the_node(
    pods: Installation,
) -> None:
    rollout = ("rollout", "status", "daemonset/est-agent", "-n", NODES, "--timeout=180s")
    await pods.kubectl(*rollout, timeout_s=190)
    nodes = names_of((await pods.get("nodes"))["items"])
    agents = {p["spec"]["nodeName"]: p for p in await pods_of(pods, NODES, "est-agent")}
    assert {*agents} == {*nodes}
    read = (
        "import json, os, pathlib; f = pathlib.Path('/var/lib/est-node');"
        "s = (f / 'key.pem').stat();"
        "print(json.dumps([(f / 'cert.pem').read_text(), oct(s.st_mode & 0o777), s.st_uid,"
        " [l.split()[1] for l in open('/proc/self/status') if l.startswith('CapEff')][0]]))"
    )
    for node, pod in agents.items():

        async def presented(pod: Object = pod) -> x509.Certificate:
            name = pod["metadata"]["name"]
            printed = json.loads(await exec_in(pods, NODES, name, "python", "-c", read))
            assert printed[1:] == ["0o640", 10001, "0000000000000000"]
            return x509.load_pem_x509_certificate(printed[0].encode())

        first = await presented()
        assert first.subject.rfc4514_string() == f"CN={node}"
        names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [f"{node}.nodes.clinic.example"]

        # It rotates while the tests before this one wait for the sidecars.
        async def rotated(pod: Object = pod, presented: Any = presented) -> bool:
            log = await log_of(pods, NODES, pod["metadata"]["name"])
            steps = [json.loads(line) for line in log.splitlines() if '"stored"' in line]
            if len(steps) < 2:
                return False
            begun = dt.datetime.fromisoformat(steps[0]["time"])
            return bool((await presented()).not_valid_before_utc > begun)

        await until(rotated, 200, "the node has a second certificate")


async def test_a_token_gives_the_names_of_its_own_pod_and_node_alone(pods: Installation) -> None:
    node = names_of((await pods.get("nodes"))["items"])[0]
    agent = names_of(await pods_of(pods, NODES, "est-agent"))[0]
    first, second = names_of(await pods_of(pods, PODS, "orders"))
    for namespace, account, bound, name, expected in (
        (PODS, "orders", first, first, 200),
        (PODS, "orders", first, second, 403),
        (PODS, "orders", None, first, 403),
        (NODES, "est-agent", agent, node, 200),
        (NODES, "est-agent", agent, "node-2", 403),
        (NODES, "est-agent", None, node, 403),
    ):
        binding = ("--bound-object-kind=Pod", f"--bound-object-name={bound}") if bound else ()
        created = await pods.kubectl(
            *("create", "token", account, "-n", namespace, "--audience=est", *binding)
        )
        client = await Client.of(pods)
        client.token = created.stdout.decode().strip()
        # The profile of pods needs a DNS name, that of nodes does not.
        san = SAN if namespace == PODS else None
        status, _, body = await client.enroll_once(make_csr(name, san)[1])
        assert status == expected, (account, bound, name, body)


async def test_a_new_pod_of_the_daemon_renews_and_does_not_enroll_anew(pods: Installation) -> None:
    (pod, *_) = names_of(await pods_of(pods, NODES, "est-agent"))
    await pods.kubectl("delete", "pod", pod, "-n", NODES)
    rollout = ("rollout", "status", "daemonset/est-agent", "-n", NODES, "--timeout=180s")
    await pods.kubectl(*rollout, timeout_s=190)

    async def ready() -> bool:
        found = await pods_of(pods, NODES, "est-agent")
        return bool(found) and all(is_ready(p) for p in found)

    await until(ready, 60, "the new pod is ready")
    (new, *_) = names_of(await pods_of(pods, NODES, "est-agent"))
    assert new != pod
    assert "bootstrapping" not in await log_of(pods, NODES, new)
