"""est-issuer in pods of its image, as ``overlays/est-issuer`` installs it.

Runs where ``CLUSTER_HOST`` is an address of this machine that pods reach; the image is on the nodes.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
import yaml

from estsuite_testing.chains import make_request
from estsuite_testing.issuer_world import BIN, SYSTEM, IssuerWorld
from estsuite_testing.reload.pages import Page

HOST = os.environ.get("CLUSTER_HOST", "")
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]


@pytest_asyncio.fixture(scope="module", loop_scope="session", autouse=True)
async def installed(world: IssuerWorld) -> AsyncIterator[None]:
    """The EST server at an address that pods reach, and the overlay."""
    await reachable(world)
    await world.stop()
    (install,) = page(world).commands("Install")
    assert "successfully rolled out" in await run(world, install)
    await world.apply(world.issuer("pods", url=f"https://{HOST}:{world.stack.ports[0]}"))
    yield
    await world.kubectl("delete", "deployment", "est-issuer", "-n", SYSTEM)


async def reachable(world: IssuerWorld) -> None:
    """Let est-frontend listen on every address, with a certificate that names this one."""
    layout, suite = world.stack.layout, world.stack.suite
    made = layout.folder / "for-pods"
    names = ("--host", "localhost", "--host", "127.0.0.1", "--host", HOST)
    passphrase = ("--passphrase-file", str(layout.secrets / "ca.passphrase"))
    command = ("ca", "server-certificate", "--folder", str(layout.ca), "--out", str(made))
    await suite.stop_service("est-frontend")
    await suite.run("ca-signer", *command, *names, *passphrase)
    for file in made.iterdir():
        shutil.copy(file, layout.ca / "server" / file.name)
    layout.overrides["est-frontend"]["listen"] = {"host": "0.0.0.0"}  # noqa: S104 - pods
    await suite.start_service("est-frontend", "est-frontend", wait=True)


def page(world: IssuerWorld) -> Page:
    """The page of cert-manager, for this server."""
    secret = world.folder / "load.secret"
    secret.write_text(world.stack.secret)
    values = {
        "https://est.example:8443": f"https://{HOST}:{world.stack.ports[0]}",
        ".estsuite/secrets/web-bootstrap.txt": str(secret),
        ".estsuite/ca/root.pem": str(world.stack.layout.root_file),
        "username=web-bootstrap": "username=load",
        "label: services": "label: web",
        "web.clinic.example": "paged.devices.test",
    }
    return Page.read("cert-manager.md", values)


async def run(world: IssuerWorld, commands: str) -> str:
    """Run commands of the page in the root of the repository."""
    path = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    process = await asyncio.create_subprocess_exec(
        *("sh", "-ec", commands), cwd=world.root, env={**os.environ, **path}, stdout=PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, commands
    return out.decode()


async def rolled_out(world: IssuerWorld) -> None:
    await world.kubectl(
        *("rollout", "status", "deployment/est-issuer", "-n", SYSTEM, "--timeout=180s")
    )


async def issue(world: IssuerWorld, name: str) -> None:
    _, csr = make_request(f"{name}.devices.test")
    await world.apply(world.request(name, csr, issuer="pods"))
    await world.decide(name)
    await world.until_ready("certificaterequest", name, status="True")


async def pods(world: IssuerWorld) -> dict[str, dict[str, object]]:
    found = json.loads(await world.kubectl("get", "pods", "-n", SYSTEM, "-o", "json"))
    return {
        p["metadata"]["name"]: p for p in found["items"] if "deletionTimestamp" not in p["metadata"]
    }


async def leader(world: IssuerWorld) -> str:
    lease = await world.get("lease", "est-issuer", SYSTEM)
    return str(lease["spec"]["holderIdentity"].partition("_")[0])


async def test_pods_are_confined_and_issue(world: IssuerWorld) -> None:
    await world.until_ready("estissuer", "pods", status="True")
    await issue(world, "in-pods")
    assert await leader(world) in await pods(world)
    refused = await world.tried(
        *("run", "ordinary", "--image=estsuite/est-issuer:0.1.0", "--restart=Never", "-n", SYSTEM)
    )
    assert b'violates PodSecurity "restricted' in refused.stderr


async def test_when_the_leaders_pod_is_deleted_the_other_issues(world: IssuerWorld) -> None:
    first = await leader(world)
    await world.kubectl("delete", "pod", first, "-n", SYSTEM, "--wait=true")
    await issue(world, "pod-deleted")
    assert await leader(world) != first


async def test_a_rollout_loses_no_request(world: IssuerWorld) -> None:
    before = await world.issued()
    await world.kubectl("rollout", "restart", "deployment/est-issuer", "-n", SYSTEM)
    for number in range(5):
        await issue(world, f"rollout-{number}")
    await rolled_out(world)
    await issue(world, "rollout-after")
    assert await world.issued() == before + 6
    assert not any(
        status["restartCount"]
        for pod in (await pods(world)).values()
        for status in pod["status"]["containerStatuses"]  # type: ignore[index]  # JSON
    )


async def test_the_page_of_cert_manager_works_as_it_is(world: IssuerWorld) -> None:
    """Every command of it but that of ``cmctl``, in a namespace ``shop``."""
    shop = replace(world, namespace="shop")
    await world.kubectl("delete", "namespace", "shop", "--ignore-not-found")
    await world.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
    controllers = await world.start_cert_manager()
    try:
        issuer, certificate, renewal = page(world).yaml()
        make, look = page(world).commands("An issuer")
        await run(world, make)
        await shop.apply(yaml.safe_load(issuer))
        await shop.until_ready("estissuer", "est", status="True")
        assert "True" in await run(world, look)

        await shop.apply(yaml.safe_load(certificate))
        await shop.until_ready("certificate", "web", status="True")
        (shown,) = page(world).commands("A certificate")
        printed = await run(world, shown)
        assert "the EST server issued the certificate" in printed
        assert "subject=CN = paged.devices.test" in printed

        (bind,) = page(world).commands("Renewal with the present certificate")
        bind, renew = bind.splitlines()
        assert renew == "cmctl renew -n shop web"
        await run(world, bind)
        changed = yaml.safe_load(issuer)
        changed["spec"] |= yaml.safe_load(renewal)["spec"]
        await shop.apply(changed)
        assert (await shop.get("estissuer", "est"))["spec"]["renewal"] == "Reenroll"
        rights = ("auth", "can-i", "get", "secrets", "-n", "shop")
        account = "--as=system:serviceaccount:est-issuer:est-issuer"
        assert await world.kubectl(*rights, account) == "yes\n"
        refused = await world.tried("auth", "can-i", "get", "secrets", "-n", "default", account)
        assert refused.stdout == b"no\n"
    finally:
        await controllers.stop()
        await world.kubectl("delete", "namespace", "shop")
