"""A real Keycloak for tests: fetched once, prepared once, started on a free port with HTTPS only.

The distribution (176 MB, SHA-256 pinned) and the build of it that starts fast stay in
``~/.cache/estsuite-tests``; each run has a home of its own that links to them. Java is the
machine's from 17 on, else Debian's, unpacked without root.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import ssl
import subprocess
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from estdev.ports import free_port
from estsuite_testing.build_cache import cache_folder, download, locked
from estsuite_testing.debian import SYSTEM, debian_packages, environment, mend_links
from estsuite_testing.token_issuer import self_signed

VERSION = "26.7.3"
URL = (
    "https://repo1.maven.org/maven2/org/keycloak/keycloak-quarkus-dist"
    f"/{VERSION}/keycloak-quarkus-dist-{VERSION}.tar.gz"
)
SHA256 = "77657f30b7e90d70f727712ce1c967f430fd6a5e9f458d32d8c6df0635345f47"
REALM_FILE = Path(__file__).parents[3] / "deploy" / "keycloak" / "estsuite-realm.json"
REALM = "est"
# What a server compiles in: memory only, one node, client certificates welcome.
_BUILD = ["--db=dev-mem", "--cache=local", "--https-client-auth=request"]
_JAVA_PACKAGES = ("openjdk-17-jre-headless", "openjdk-21-jre-headless")
_START_S = 150
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def distribution() -> Path:
    """Return the prepared distribution; the first call fetches and builds it."""
    folder = cache_folder()
    recipe = hashlib.sha256(" ".join([SHA256, *_BUILD]).encode()).hexdigest()[:8]
    root = folder / f"keycloak-{VERSION}-{recipe}"
    with locked(folder / "keycloak.lock"):
        if not root.exists():
            with tempfile.TemporaryDirectory(dir=folder) as work:
                _prepare(Path(work)).rename(root)
    return root


def _prepare(work: Path) -> Path:
    archive = download(URL, SHA256, work / "keycloak.tar.gz")
    with tarfile.open(archive) as tar:
        # Before Python 3.11.4 there is no filter; what is extracted has the hash above.
        more: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(work, **more)  # noqa: S202 - see above
    home = work / f"keycloak-{VERSION}"
    done = subprocess.run(
        [home / "bin" / "kc.sh", "build", *_BUILD],
        env=_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"kc.sh build failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return home


def _environment() -> dict[str, str]:
    """Java found, a small heap, and the quick compiler only: this server lives a minute."""
    found = dict(os.environ)
    machines = shutil.which("java")
    if machines is None or _java_version(machines) < 17:
        found |= _debians_java()
    return found | {
        "JAVA_OPTS_KC_HEAP": "-Xms64m -Xmx512m",
        "JAVA_OPTS_APPEND": "-XX:TieredStopAtLevel=1",
    }


def _java_version(java: str) -> int:
    done = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    match = re.search(r'version "(\d+)', done.stderr)
    return int(match[1]) if match else 0


def _debians_java() -> dict[str, str]:
    failures = []
    for package in _JAVA_PACKAGES:
        try:
            root = debian_packages(package)
        except RuntimeError as exc:
            failures.append(str(exc))
            continue
        homes = sorted((root / "usr/lib/jvm").glob("java-[1-9]*-openjdk-*"))
        home = next(path for path in homes if (path / "bin" / "java").exists())
        if root != SYSTEM:
            mend_links(root, "usr/lib/jvm")
        return environment(root) | {"JAVA_HOME": str(home)}
    raise RuntimeError("no Java 17 or newer, and Debian's cannot be had: " + "; ".join(failures))


@dataclass
class Keycloak:
    """One server with the realm of ``deploy/keycloak``; its administrator exists for this run."""

    folder: Path
    port: int = field(default_factory=free_port)
    admin_password: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def issuer(self) -> str:
        return f"{self.url}/realms/{REALM}"

    @property
    def jwks_url(self) -> str:
        return f"{self.issuer}/protocol/openid-connect/certs"

    @property
    def ca_file(self) -> Path:
        return self.folder / "keycloak.pem"

    @property
    def log(self) -> Path:
        return self.folder / "keycloak.log"

    def client_certificate(self, name: str) -> tuple[Path, Path]:
        """A certificate Keycloak accepts in TLS, and its key; to be made before the start."""
        files = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        if not files[0].exists():
            self_signed(*files)
        return files

    def start(self) -> None:
        """Start and wait until the realm answers.

        Raises:
            RuntimeError: it ended, or is not ready in time; with the end of its log.
        """
        home = self._home()
        key_file = self.folder / "keycloak.key"
        self_signed(self.ca_file, key_file)
        trusted = sorted(self.folder.glob("*.pem"))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    home / "bin" / "kc.sh", "start", "--optimized", "--cache=local", "--import-realm",
                    f"--https-port={self.port}", "--http-host=127.0.0.1",
                    f"--hostname={self.url}",
                    f"--https-certificate-file={self.ca_file}",
                    f"--https-certificate-key-file={key_file}",
                    f"--truststore-paths={','.join(map(str, trusted))}",
                ],
                env=_environment() | {
                    "KC_BOOTSTRAP_ADMIN_USERNAME": "admin",
                    "KC_BOOTSTRAP_ADMIN_PASSWORD": self.admin_password,
                },
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError("Keycloak is not ready:\n" + self.log.read_text()[-4000:])
            time.sleep(0.2)

    def stop(self) -> None:
        """End it: kc.sh hands the signal on to Java; what is left after 20 s is killed."""
        if self.process is None:
            return
        process, self.process = self.process, None
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _home(self) -> Path:
        """The distribution by links, with folders of this run for what is written."""
        root, home = distribution(), self.folder / "home"
        shutil.copytree(root / "conf", home / "conf")
        (home / "bin").mkdir()
        shutil.copy2(root / "bin" / "kc.sh", home / "bin" / "kc.sh")
        for name in ("lib", "providers", "themes", "version.txt"):
            (home / name).symlink_to(root / name)
        (home / "data" / "import").mkdir(parents=True)
        shutil.copy(REALM_FILE, home / "data" / "import" / "est-realm.json")
        return home

    def _answers(self) -> bool:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        try:
            with urllib.request.urlopen(self.issuer, timeout=2, context=context) as answer:  # noqa: S310 - https
                return bool(answer.status == 200)
        except OSError:
            return False


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Admin:
    """The administration interface, and tokens for clients of the realm."""

    def __init__(self, keycloak: Keycloak, session: aiohttp.ClientSession) -> None:
        self._keycloak = keycloak
        self._session = session
        self._tls = ssl.create_default_context(cafile=str(keycloak.ca_file))
        self._token = ""

    async def login(self) -> None:
        form = {"grant_type": "password", "client_id": "admin-cli", "username": "admin",
                "password": self._keycloak.admin_password}  # fmt: skip
        url = f"{self._keycloak.url}/realms/master/protocol/openid-connect/token"
        self._token = (await self._send("POST", url, data=form))["access_token"]

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """One call below the realm; returns its JSON."""
        url = f"{self._keycloak.url}/admin/realms/{REALM}{path}"
        headers = {"Authorization": f"Bearer {self._token}"}
        return await self._send(method, url, json=body, headers=headers)

    async def secret_of(self, client_id: str) -> str:
        (client,) = await self.call("GET", f"/clients?clientId={client_id}")
        return str((await self.call("GET", f"/clients/{client['id']}/client-secret"))["value"])

    async def tokens(
        self,
        client_id: str,
        *,
        headers: dict[str, str] | None = None,
        certificate: tuple[Path, Path] | None = None,
        **form: str,
    ) -> dict[str, Any]:
        """The token endpoint's answer to client credentials."""
        form = {"grant_type": "client_credentials", "client_id": client_id,
                "client_secret": await self.secret_of(client_id)} | form  # fmt: skip
        tls = self._tls
        if certificate is not None:
            tls = ssl.create_default_context(cafile=str(self._keycloak.ca_file))
            tls.load_cert_chain(*certificate)
        url = f"{self._keycloak.issuer}/protocol/openid-connect/token"
        found: dict[str, Any] = await self._send("POST", url, tls, data=form, headers=headers)
        return found

    async def _send(
        self, method: str, url: str, tls: ssl.SSLContext | None = None, **more: Any
    ) -> Any:
        async with self._session.request(method, url, ssl=tls or self._tls, **more) as answer:
            text = await answer.text()
            if answer.status >= 400:
                raise RuntimeError(f"{method} {url}: {answer.status} {text}")
            return json.loads(text) if text else None


@contextlib.asynccontextmanager
async def administration(keycloak: Keycloak) -> AsyncIterator[Admin]:
    timeout = aiohttp.ClientTimeout(total=30)
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        admin = Admin(keycloak, session)
        await admin.login()
        yield admin
    # Connections under TLS are closed by their transports a moment later.
    await asyncio.sleep(0.05)
