"""OpenSearch on a JDK, from its Maven artifacts, with the template and pipeline of ``deploy/siem``.

The artifacts are those of Maven Central, by SHA-256; OpenSearch's distribution is not among them,
so ``Server.java`` starts a node from them, with TLS of its own in place of the security plugin.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    load_pem_private_key,
    pkcs12,
)

from estdev.ports import free_port
from estsuite_testing.build_cache import built, fetched, run_build
from estsuite_testing.foreign.sources import CLIENTS
from estsuite_testing.foreign.toolchains import jdk
from estsuite_testing.siem import SIEM

_SOURCE = CLIENTS / "opensearch"
_MAVEN = "https://repo1.maven.org/maven2"
_CONFIGURATIONS = Path(__file__).parents[4] / "deploy" / "siem" / "elasticsearch"
_PASSWORD = "of-a-test"
_FAST = ["-Xms256m", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"]
PIPELINE = "estsuite-audit"
Answer = dict[str, Any]


def configuration(name: str) -> Answer:
    """Return a file of ``deploy/siem/elasticsearch``."""
    found: Answer = json.loads((_CONFIGURATIONS / name).read_text(encoding="utf-8"))
    return found


def _jars() -> list[Path]:
    lines = (_SOURCE / "jars.sha256").read_text(encoding="utf-8").splitlines()
    pairs = [line.split() for line in lines]
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda pair: fetched(f"{_MAVEN}/{pair[1]}", pair[0]), pairs))


class OpenSearch:
    """One node; its data are in a folder of its own and outlive the process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.certificates = SIEM(folder)
        self.url = f"https://127.0.0.1:{free_port()}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._tls = ssl.create_default_context(cafile=str(self.certificates.ca_file))

    def _command(self) -> list[str]:
        java, env = jdk()
        path = os.pathsep.join(map(str, _jars()))

        def compile_server(folder: Path) -> None:
            javac = [str(java / "javac"), "-nowarn", "-cp", path, "-d", str(folder)]
            run_build([*javac, str(_SOURCE / "Server.java")], cwd=folder, env=env)

        recipe = [_SOURCE / "Server.java", _SOURCE / "jars.sha256"]
        classes = built("opensearch", recipe, compile_server)
        logs = f"-Dlog4j2.configurationFile={_SOURCE / 'log4j2.properties'}"
        command = [str(java / "java"), *_FAST, logs, "-cp", f"{classes}{os.pathsep}{path}"]
        ports = [self.url.rpartition(":")[2], str(free_port())]
        return [*command, "Server", str(self._folder), *ports, str(self._key_store()), _PASSWORD]

    def _key_store(self) -> Path:
        certificates = self.certificates
        store = pkcs12.serialize_key_and_certificates(
            b"https",
            load_pem_private_key(certificates.key_file.read_bytes(), password=None),  # type: ignore[arg-type] # an EC key
            x509.load_pem_x509_certificate(certificates.certificate_file.read_bytes()),
            None,
            BestAvailableEncryption(_PASSWORD.encode()),
        )
        file = self._folder / "https.p12"
        file.write_bytes(store)
        return file

    async def start(self) -> None:
        """Start it, and return when it answers."""
        command = await asyncio.to_thread(self._command)
        log = self._folder / "opensearch.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        async with asyncio.timeout(120):
            while True:
                assert self._process.poll() is None, log.read_text(encoding="utf-8")[-4000:]
                try:
                    await self.call("GET", "/_cluster/health?wait_for_status=yellow")
                except OSError:
                    await asyncio.sleep(0.1)
                else:
                    return

    async def stop(self, *, kill: bool = False) -> None:
        """End it; with ``kill`` it has no time to write anything."""
        if self._process is not None:
            (self._process.kill if kill else self._process.terminate)()
            await asyncio.to_thread(self._process.wait, 30)
            self._process = None

    async def call(self, method: str, path: str, body: Answer | None = None) -> Answer:
        """Carry out one request of its REST interface.

        Raises:
            RuntimeError: it refused.
            OSError: it did not answer.
        """
        return await asyncio.to_thread(self._call, method, path, body)

    def _call(self, method: str, path: str, body: Answer | None) -> Answer:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - https, of this machine
            self.url + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30, context=self._tls) as answer:  # noqa: S310 - see above
                found: Answer = json.load(answer)
        except urllib.error.HTTPError as exc:
            with exc:
                raise RuntimeError(f"{method} {path}: {exc.code} {exc.read().decode()}") from exc
        return found

    async def configure(self) -> None:
        """Put the pipeline and the template there, as docs/operations/siem.md says."""
        pipeline = configuration("ingest-pipeline.json")
        await self.call("PUT", f"/_ingest/pipeline/{PIPELINE}", pipeline)
        template = configuration("index-template.json")
        await self.call("PUT", f"/_index_template/{PIPELINE}", template)

    async def search(self, index: str, query: Answer, **more: Any) -> list[Answer]:
        """Return the hits of a query among all that is stored, at most 1,000."""
        await self.call("POST", f"/{index}/_refresh")
        body = {"query": query, "size": 1000, **more}
        answer = await self.call("POST", f"/{index}/_search", body)
        hits: list[Answer] = answer["hits"]["hits"]
        return hits
