"""est-issuer on the cluster that KUBECONFIG names, as a process with the rights of its manifests.

The controller runs on this machine, so that it reaches the EST server of the tests, which listens
on loopback. It authenticates with a token of its service account, under the roles of
``deploy/k8s/components/est-issuer``: a right that is missing there fails here.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import yaml
from cryptography import x509

from estdev.local import admin_get
from estdev.ports import free_port
from estsuite_testing.build_cache import built, run_build
from estsuite_testing.e2e_stack import Stack
from estsuite_testing.token_issuer import TestIssuer

BIN = Path(sys.executable).parent
SYSTEM = "est-issuer"
GROUP = "estsuite.internal"
MODULE = "github.com/cert-manager/cert-manager"
Object = dict[str, Any]
_FIRST_KUBELET = 36


def missing() -> str | None:
    """What the environment lacks."""
    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG names no cluster"
    return None


def serves_pod_requests() -> bool:
    """Whether the API server has PodCertificateRequests."""
    if missing():
        return False
    command = [str(BIN / "kubectl"), "get", "--raw", "/apis/certificates.k8s.io/v1beta1"]
    done = subprocess.run(command, capture_output=True, check=False)
    return b'"podcertificaterequests"' in done.stdout


def kubelets_make_pod_requests() -> bool:
    """Whether the kubelets do, for a podCertificate volume with an empty CSR: from 1.36 on."""
    if not serves_pod_requests():
        return False
    command = [str(BIN / "kubectl"), "get", "nodes", "-o", "json"]
    nodes = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["items"]
    versions = [node["status"]["nodeInfo"]["kubeletVersion"] for node in nodes]
    return all(int(version.split(".")[1]) >= _FIRST_KUBELET for version in versions)


def cluster_tokens(folder: Path) -> Object:
    """Return the settings with which est-frontend accepts service account tokens of the cluster.

    Their keys may be read without a token from now on; they are public.
    """

    def kubectl(*arguments: str) -> str:
        done = subprocess.run([BIN / "kubectl", *arguments], capture_output=True, check=True)
        return done.stdout.decode()

    role = "system:service-account-issuer-discovery"
    binding = (
        "create",
        "clusterrolebinding",
        "est-issuer-test-token-keys",
        f"--clusterrole={role}",
    )
    everyone = ("--group=system:unauthenticated", "--dry-run=client", "-o", "json")
    made = folder / "token-keys.json"
    made.write_text(kubectl(*binding, *everyone))
    kubectl("apply", "-f", str(made))
    config = json.loads(kubectl("config", "view", "--minify", "-o", "json"))
    root = json.loads(
        kubectl("get", "configmap", "kube-root-ca.crt", "-n", "default", "-o", "json")
    )
    (folder / "cluster-root.pem").write_text(root["data"]["ca.crt"])
    return {
        "id": "cluster",
        "kind": "kubernetes",
        "issuer": json.loads(kubectl("get", "--raw", "/.well-known/openid-configuration"))[
            "issuer"
        ],
        "jwks_url": f"{config['clusters'][0]['cluster']['server']}/openid/v1/jwks",
        "audience": "est",
        "ca_file": str(folder / "cluster-root.pem"),
    }


def go_module(root: Path) -> Path:
    """Return the folder of cert-manager's module, fetched through the Go module proxy."""
    folder = root / "tests" / "cert_manager" / "controllers"
    done = subprocess.run(
        ["go", "mod", "download", "-json", MODULE], cwd=folder, capture_output=True, check=True
    )
    return Path(json.loads(done.stdout)["Dir"])


def cert_manager_controllers(root: Path) -> Path:
    """Return the program with cert-manager's controllers, built once on a machine."""
    folder = root / "tests" / "cert_manager" / "controllers"

    def build(place: Path) -> None:
        command = [
            "go",
            "build",
            "-trimpath",
            "-ldflags=-s -w",
            "-o",
            str(place / "controllers"),
            ".",
        ]
        run_build(command, cwd=folder, env=os.environ)

    recipe = [folder / name for name in ("main.go", "go.mod", "go.sum")]
    return built("cert-manager", recipe, build) / "controllers"


@dataclass
class Process:
    """A controller that runs."""

    process: asyncio.subprocess.Process
    log: IO[bytes]
    path: Path
    admin_port: int = 0

    async def stop(self, *, kill: bool = False) -> None:
        if self.process.returncode is None:
            self.process.kill() if kill else self.process.terminate()
            await self.process.wait()
        self.log.close()

    def lines(self) -> list[Object]:
        """The log of est-issuer."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@dataclass
class IssuerWorld:
    """The cluster, an EST server, and what runs between them."""

    root: Path
    folder: Path
    stack: Stack
    namespace: str
    tokens: TestIssuer
    processes: dict[str, Process] = field(default_factory=dict)

    # kubectl

    async def kubectl(self, *arguments: str, given: object = None) -> str:
        """Run kubectl; ``given`` is sent to it as JSON.

        Raises:
            AssertionError: it failed, with what it printed.
        """
        done = await self.tried(*arguments, given=given)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}:\n{done.stderr.decode()}"
        return done.stdout.decode()

    async def tried(
        self, *arguments: str, given: object = None
    ) -> subprocess.CompletedProcess[bytes]:
        process = await asyncio.create_subprocess_exec(
            BIN / "kubectl",
            *arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await process.communicate(json.dumps(given).encode() if given else None)
        return subprocess.CompletedProcess(arguments, process.returncode or 0, out, err)

    async def apply(self, *objects: Object) -> None:
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        await self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", given=items)

    async def get(self, kind: str, name: str, namespace: str | None = None) -> Object:
        place = ("--namespace", namespace or self.namespace)
        found: Object = json.loads(await self.kubectl("get", kind, name, *place, "-o", "json"))
        return found

    async def delete(self, kind: str, name: str) -> None:
        await self.kubectl("delete", kind, name, "--namespace", self.namespace, "--wait=true")

    async def until(
        self,
        kind: str,
        name: str,
        good: Callable[[Object], object],
        *,
        namespace: str | None = None,
        within_s: float = 60,
    ) -> Object:
        """Return an object as soon as it is as it should be."""
        place = ("-n", namespace or self.namespace)
        found: Object = {}
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            done = await self.tried("get", kind, name, *place, "-o", "json")
            if done.returncode == 0:
                found = json.loads(done.stdout)
                if good(found):
                    return found
            await asyncio.sleep(0.2)
        raise AssertionError(f"{kind} {name}: {json.dumps(found.get('status'), indent=1)}")

    async def until_ready(
        self, kind: str, name: str, *, namespace: str | None = None, **wanted: str
    ) -> Object:
        """Return the condition Ready as soon as it has these fields."""

        def good(found: Object) -> bool:
            ready = condition(found, "Ready")
            return bool(ready) and all(wanted[k] == ready.get(k) for k in wanted)

        return condition(await self.until(kind, name, good, namespace=namespace), "Ready")

    async def event(self, name: str, reason: str, namespace: str | None = None) -> str:
        """Return what an event about an object says, as soon as there is one with this reason."""
        place = ("-n", namespace or self.namespace)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            listed = await self.kubectl("get", "events.events.k8s.io", *place, "-o", "json")
            for found in json.loads(listed)["items"]:
                if (found["regarding"]["name"], found["reason"]) == (name, reason):
                    return str(found["note"])
            await asyncio.sleep(0.3)
        raise AssertionError(f"no event {reason} about {name}")

    # Controllers

    async def install(self) -> None:
        """Apply the definitions, roles and namespaces; cert-manager's definitions too."""
        component = self.root / "deploy" / "k8s" / "components" / "est-issuer"
        crds = go_module(self.root) / "deploy" / "crds"
        for path in (crds, component / "namespace.yaml", component / "crds.yaml"):
            await self.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(path))
        names = [f"crd/{n}.{GROUP}" for n in ("estissuers", "estclusterissuers")]
        await self.kubectl("wait", "--for=condition=Established", *names)
        await self.kubectl("apply", "-f", str(component / "rbac.yaml"))
        await self.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        )

    async def bind(self, role: str, namespace: str | None = None) -> None:
        """Bind a ClusterRole to the controller in a namespace of tests."""
        await self.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": role, "namespace": namespace or self.namespace},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "ClusterRole",
                    "name": role,
                },
                "subjects": [{"kind": "ServiceAccount", "name": SYSTEM, "namespace": SYSTEM}],
            }
        )

    async def bind_cluster(self, role: str) -> None:
        """Bind a ClusterRole to the controller in every namespace."""
        await self.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": role},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "ClusterRole",
                    "name": role,
                },
                "subjects": [{"kind": "ServiceAccount", "name": SYSTEM, "namespace": SYSTEM}],
            }
        )

    async def start_issuer(self, instance: str = "issuer-1", **settings: object) -> Process:
        """Start the controller with the rights of its service account; it is ready then."""
        port = free_port()
        path = self.folder / f"{instance}.yaml"
        content = {
            "instance": instance,
            "kubeconfig_file": str(await self.kubeconfig()),
            "signing_requests": True,
            "longest_pause_s": 2,
            "lease": {"duration_s": 5},
            "admin": {"port": port},
            **settings,
        }
        path.write_text(yaml.safe_dump(content))
        command = [str(BIN / "est-issuer"), "run", "--config", str(path)]
        started = await self._start(command, self.folder / f"{instance}.log", port)
        for _ in range(300):
            assert started.process.returncode is None, started.path.read_text()
            if (await admin_get(port, "/readyz")).startswith("ready"):
                return started
            await asyncio.sleep(0.1)
        raise AssertionError(started.path.read_text())

    async def start_cert_manager(self) -> Process:
        """Start cert-manager's own controllers, with its approver."""
        program = await asyncio.to_thread(cert_manager_controllers, self.root)
        return await self._start([str(program)], self.folder / "cert-manager.log", 0)

    async def stop(self) -> None:
        for process in self.processes.values():
            await process.stop()

    async def stop_service_of(self, instance: str, *, kill: bool = False) -> None:
        """Stop a replica of est-issuer, or kill it."""
        await self.processes.pop(instance).stop(kill=kill)

    async def _start(self, command: Sequence[str], log: Path, port: int) -> Process:
        file = log.open("ab")
        process = await asyncio.create_subprocess_exec(*command, stdout=file, stderr=file)
        started = Process(process, file, log, port)
        self.processes[log.stem] = started
        return started

    async def kubeconfig(self, through: int | None = None) -> Path:
        """Return a kubeconfig with the rights of the controller; ``through`` is a port of loopback."""
        path = self.folder / f"kubeconfig-{through or 'direct'}"
        if not path.exists():
            token = await self.kubectl("create", "token", SYSTEM, "-n", SYSTEM, "--duration=1h")
            text = await self.kubectl("config", "view", "--raw", "--minify", "-o", "json")
            config = json.loads(text)
            config["users"][0]["user"] = {"token": token.strip()}
            if through is not None:
                cluster = config["clusters"][0]["cluster"]
                cluster["tls-server-name"] = urlsplit(cluster["server"]).hostname
                cluster["server"] = f"https://127.0.0.1:{through}"
            path.touch(mode=0o600)
            path.write_text(json.dumps(config))
        return path

    async def api_server(self) -> tuple[str, int]:
        """Return host and port of the API server."""
        text = await self.kubectl("config", "view", "--minify", "-o", "json")
        parts = urlsplit(json.loads(text)["clusters"][0]["cluster"]["server"])
        return parts.hostname or "", parts.port or 443

    # Objects

    async def foreign_root(self) -> str:
        """Return the root of a CA that issued nothing here: base64 of PEM."""
        folder = self.folder / "foreign"
        if not folder.exists():
            folder.mkdir()
            passphrase = self.stack.layout.secrets / "ca.passphrase"
            command = ("ca", "init", "--name", "Stranger", "--folder", str(folder))
            await self.stack.suite.run("ca-signer", *command, "--passphrase-file", str(passphrase))
        return base64.b64encode((folder / "root.pem").read_bytes()).decode()

    @property
    def url(self) -> str:
        return self.stack.suite.url.removesuffix("/.well-known/est")

    async def secret(self, name: str, *, namespace: str | None = None, **data: str) -> None:
        await self.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name, "namespace": namespace or self.namespace},
                "stringData": data,
            }
        )

    async def basic_secret(self, name: str = "est", namespace: str | None = None) -> None:
        """Store the enrollment secret of the suite."""
        await self.secret(name, namespace=namespace, username="load", password=self.stack.secret)

    def issuer(self, name: str, *, kind: str = "ESTIssuer", **spec: object) -> Object:
        """Return an issuer for the suite; keywords replace fields of its spec."""
        bundle = base64.b64encode(self.stack.layout.root_file.read_bytes()).decode()
        metadata = {"name": name}
        if kind == "ESTIssuer":
            metadata["namespace"] = self.namespace
        good: Object = {
            "url": self.url,
            "trust": {"caBundle": bundle},
            "credentials": {"basic": {"secretRef": {"name": "est"}}},
        }
        return {
            "apiVersion": f"{GROUP}/v1alpha1",
            "kind": kind,
            "metadata": metadata,
            "spec": {**good, **spec},
        }

    def request(
        self, name: str, csr: bytes, *, issuer: str, kind: str = "ESTIssuer", **spec: Any
    ) -> Object:
        """Return a CertificateRequest."""
        return {
            "apiVersion": "cert-manager.io/v1",
            "kind": "CertificateRequest",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "request": base64.b64encode(csr).decode(),
                "issuerRef": {"group": GROUP, "kind": kind, "name": issuer},
                "usages": ["digital signature", "key encipherment"],
                **spec,
            },
        }

    async def decide(self, name: str, kind: str = "Approved") -> None:
        """Approve or deny a CertificateRequest, as an approver does."""
        found = await self.get("certificaterequest", name)
        new = {
            "type": kind,
            "status": "True",
            "reason": "Tests",
            "message": "decided by a test",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        status = {"conditions": [*(found.get("status") or {}).get("conditions", []), new]}
        await self.kubectl(
            *("patch", "certificaterequest", name, "-n", self.namespace, "--type=merge"),
            *("--subresource=status", "-p", json.dumps({"status": status})),
        )

    async def issued(self) -> int:
        """How many certificates the suite issued until now."""
        return len(await self.stack.ledger())

    async def authenticated(self, name: str) -> list[tuple[str, str]]:
        """By what operation and whom each certificate of a common name was issued, oldest first."""
        await self.stack.until_recorded()
        return [
            (record["details"]["operation"], record["actor"]["subject"])
            for record in await self.stack.records()
            if record["action"] == "certificate.issue"
            and record["phase"] == "outcome"
            and record["target"].get("subject") == f"CN={name}"
        ]


def condition(found: Object, kind: str) -> Object:
    """Return a condition of an object; empty if there is none."""
    conditions = (found.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == kind), {})


def certificates_in(text: str) -> list[x509.Certificate]:
    """Return the certificates of a field of the API."""
    return x509.load_pem_x509_certificates(base64.b64decode(text))
