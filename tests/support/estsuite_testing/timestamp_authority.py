"""A time-stamping authority: ``openssl ts`` behind a small HTTP server, with faults on demand."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from aiohttp import web

from audit.settings import TimestampSettings

NAME = "tsa.test"
_CONFIGURATION = """
[tsa]
default_tsa = one
[one]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
certs = {folder}/tsa.pem
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
ordering = yes
tsa_name = yes
ess_cert_id_chain = no
"""
_EXTENSIONS = """
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


def openssl(*arguments: str | Path) -> bytes:
    """Run openssl and return what it prints."""
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


class TimestampAuthority:
    """Stamps what it is asked, unless ``faults`` names what to do with the next requests."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.anchors = folder, folder / "root.pem"
        self.faults: list[str] = []
        self.requests = 0
        self._first: bytes | None = None
        self._runner: web.AppRunner | None = None
        self._issue()

    def _issue(self) -> None:
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        folder = self.folder
        openssl("req", "-x509", *key, "-keyout", folder / "root.key", "-out", self.anchors,
                "-subj", "/CN=root of tsa", "-days", "2")  # fmt: skip
        openssl("req", *key, "-keyout", folder / "tsa.key", "-out", folder / "tsa.csr",
                "-subj", "/CN=tsa")  # fmt: skip
        (folder / "extensions").write_text(_EXTENSIONS)
        openssl("x509", "-req", "-in", folder / "tsa.csr", "-CA", self.anchors, "-CAkey",
                folder / "root.key", "-CAcreateserial", "-days", "2", "-extfile",
                folder / "extensions", "-out", folder / "tsa.pem")  # fmt: skip
        (folder / "tsa.cnf").write_text(_CONFIGURATION.format(folder=folder))
        (folder / "serial").write_text("01")

    def stamp(self, query: bytes) -> bytes:
        """Return the answer to a request, both DER."""
        file, answer = self.folder / "query.tsq", self.folder / "answer.tsr"
        file.write_bytes(query)
        configuration = self.folder / "tsa.cnf"
        openssl("ts", "-reply", "-config", configuration, "-section", "one",
                "-queryfile", file, "-out", answer)  # fmt: skip
        return answer.read_bytes()

    def settings(self, url: str, **changes: object) -> TimestampSettings:
        """The settings of an authority at this address."""
        values = {"name": NAME, "url": url, "anchors_file": self.anchors, "every_s": 0.2}
        return TimestampSettings.model_validate({**values, "timeout_s": 1, **changes})

    async def start(self) -> str:
        """Return the address."""
        app = web.Application()
        app.router.add_post("/tsr", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/tsr"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        query = await request.read()
        assert request.content_type == "application/timestamp-query"
        self.requests += 1
        match self.faults.pop(0) if self.faults else "":
            case "busy":
                return web.Response(status=503)
            case "slow":
                await asyncio.sleep(5)
            case "garbage":
                return web.Response(body=b"\x30\x03\x02\x01\x00")
            case "huge":
                return web.Response(body=b"0" * 10_000_000)
            case "moved":
                return web.Response(status=302, headers={"Location": "http://127.0.0.1:9/"})
            case "old" if self._first is not None:
                return web.Response(body=self._first)
        answer = await asyncio.to_thread(self.stamp, query)
        self._first = self._first or answer
        return web.Response(body=answer, content_type="application/timestamp-reply")
