"""TLS, time, limits and bodies, and what changes while it runs. Over the wire."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import os
import re
import signal
import subprocess
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    load_pem_private_key,
)

from estclient.cli import main as estctl
from estcore.est.csrattrs import parse_csrattrs
from estdev.local import admin_get
from estsuite_testing.e2e_stack import (
    certificate_in,
    make_csr,
)
from estsuite_testing.raw_client import BASE, b64
from estsuite_testing.ways import World, basic

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


# TLS.


def s_client(world: World, *arguments: str, send: bytes = b"") -> str:
    done = subprocess.run(
        [
            *("openssl", "s_client", "-connect", f"127.0.0.1:{world.stack.layout.ports.est}"),
            *("-CAfile", str(world.stack.layout.root_file), "-servername", "localhost"),
            *arguments,
        ],
        input=send,
        capture_output=True,
        timeout=20,
        check=False,
    )
    return (done.stdout + done.stderr).decode()


async def test_K10_renegotiation_is_refused(world: World) -> None:
    out = await asyncio.to_thread(s_client, world, "-tls1_2", send=b"R\n")
    assert "RENEGOTIATING" in out
    assert "no renegotiation" in out.lower() or "handshake failure" in out.lower(), out[-500:]


async def test_K9_K11_K12_no_session_is_resumed_and_no_ca_is_named(world: World) -> None:
    kept = world.folder / "session.pem"
    for version in ("-tls1_2", "-tls1_3"):
        out = await asyncio.to_thread(s_client, world, version, "-sess_out", str(kept))
        assert "No client certificate CA names sent" in out
        if kept.exists():
            again = await asyncio.to_thread(s_client, world, version, "-sess_in", str(kept))
            assert "Reused, TLS" not in again


# Time.


async def test_G1_G7_E14_C9_a_slow_signer_is_202_with_seconds_and_text_or_503(world: World) -> None:
    signer = world.stack.suite.services["ca-signer"].process
    os.kill(signer.pid, signal.SIGSTOP)
    try:
        pending, busy = await asyncio.gather(
            world.client.enroll(b64(make_csr("dev-slow")[1])),
            world.client.enroll(b64(make_csr("dev-slow")[1]), path=f"{BASE}/hasty/simpleenroll"),
        )
    finally:
        os.kill(signer.pid, signal.SIGCONT)
    assert pending.status == 202
    assert pending.headers["Retry-After"].isdigit()
    assert pending.text.strip()
    assert busy.status == 503
    assert busy.headers["Retry-After"].isdigit()
    # C9: CA certificates are never "later".
    assert (await world.client.request("GET", f"{BASE}/cacerts")).status == 200


# Limits of a rule.


async def test_N4_a_rules_quota_and_lifetime_hold(world: World) -> None:
    auth = basic("twice", world.secrets["twice"])
    for n in range(2):
        answer = await world.client.request(
            "POST", f"{BASE}/simpleenroll", b64(make_csr(f"dev-q{n}")[1]), auth=auth
        )
        assert answer.status == 200, answer.text
        leaf = certificate_in(answer.body)
        life = leaf.not_valid_after_utc - dt.datetime.now(dt.UTC)
        assert dt.timedelta(days=1, hours=23) < life <= dt.timedelta(days=2)
    third = await world.client.request(
        "POST", f"{BASE}/simpleenroll", b64(make_csr("dev-q3")[1]), auth=auth
    )
    assert (third.status, "policy.quota" in third.text) == (403, True)


async def test_N4_a_label_has_a_rate_of_its_own(world: World) -> None:
    path = f"{BASE}/narrow/cacerts"
    answers = [await world.client.request("GET", path) for _ in range(5)]
    limited = [a for a in answers if a.status == 429]
    assert limited, [a.status for a in answers]
    assert int(limited[0].headers["Retry-After"]) >= 1
    assert "rate.limited" in limited[0].text
    assert (await world.client.request("GET", f"{BASE}/cacerts")).status == 200


# Bodies.


async def test_B4_pem_and_der_are_taken_unless_the_label_refuses_them(world: World) -> None:
    key, der = make_csr("dev-pem")
    pem = x509.load_der_x509_csr(der).public_bytes(Encoding.PEM)
    for body in (pem, der, pem.replace(b"\n", b"\r\n")):
        answer = await world.client.enroll(body, path=f"{BASE}/services/simpleenroll")
        assert answer.status == 200, answer.text
        strict = await world.client.enroll(body, path=f"{BASE}/exact/simpleenroll")
        assert strict.status == 400
    assert key is not None


# What changes while it runs.


@pytest.mark.logs_errors("configuration change rejected")
async def test_K13_a_new_server_certificate_is_served_without_a_restart(world: World) -> None:
    server = world.stack.layout.ca / "server"
    before = (server / "server.pem").read_bytes()
    reader, writer = await world.client.connect()
    layout = world.stack.layout
    new = world.folder / "new-server"
    await world.stack.suite.run(
        *("ca-signer", "ca", "server-certificate", "--folder", str(layout.ca)),
        *("--passphrase-file", str(layout.secrets / "ca.passphrase")),
        *("--out", str(new), "--host", "localhost"),
    )
    stop = asyncio.Event()

    async def keep_connecting() -> int:
        count = 0
        while not stop.is_set():
            _, connected = await world.client.connect()  # a failed handshake fails the test
            connected.close()
            count += 1
        return count

    connecting = asyncio.ensure_future(keep_connecting())
    # First the certificate, then its key: in between the pair is bad and refused.
    (server / "server.pem").write_bytes((new / "server.pem").read_bytes())
    await asyncio.sleep(0.7)
    assert (await served(world)) == serial(before)
    (server / "server.key").write_bytes((new / "server.key").read_bytes())
    async with asyncio.timeout(5):
        while await served(world) == serial(before):
            await asyncio.sleep(0.1)
    assert await served(world) == serial((new / "server.pem").read_bytes())
    stop.set()
    assert await connecting > 10
    # The connection from before the change still answers.
    writer.write(f"GET {BASE}/cacerts HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    load_pem_private_key((server / "server.key").read_bytes(), None)  # still readable


def serial(pem: bytes) -> int:
    return x509.load_pem_x509_certificates(pem)[0].serial_number


async def served(world: World) -> int:
    _, writer = await world.client.connect()
    der = writer.get_extra_info("ssl_object").getpeercert(True)
    writer.close()
    return x509.load_der_x509_certificate(der).serial_number


@pytest.mark.logs_errors("configuration change rejected")
async def test_a_bad_policy_is_refused_and_a_good_one_taken_by_front_end_and_signer(
    world: World,
) -> None:
    file = world.stack.layout.config / "policy.yaml"
    good = file.read_text()
    file.write_text(good + "\nunknown: true\n")
    await asyncio.sleep(0.7)
    assert (await world.client.enroll(b64(make_csr("dev-still")[1]))).status == 200
    # Another name for the same secret: both have to know it before it is given.
    file.write_text(good.replace('["dev-*"], dns: ["dev-*"]', '["new-*"], dns: ["new-*"]'))
    try:
        async with asyncio.timeout(15):
            while (await world.client.enroll(b64(make_csr("new-name")[1]))).status != 200:
                await asyncio.sleep(0.2)
        refused = await world.client.enroll(b64(make_csr("dev-name")[1]))
        assert (refused.status, "policy.subject" in refused.text) == (403, True)
    finally:
        file.write_text(good)
    async with asyncio.timeout(15):
        while (await world.client.enroll(b64(make_csr("dev-name")[1]))).status != 200:
            await asyncio.sleep(0.2)


@pytest.mark.logs_errors("configuration change rejected")
async def test_a_label_whose_issuer_no_signer_serves_is_answered_503(world: World) -> None:
    """Nothing waits in the stream for a signer that does not exist."""
    file = world.stack.layout.config / "policy.yaml"
    good = yaml.safe_load(file.read_text())
    orphan = good["labels"]["services"] | {"issuer": "nobody"}
    changed = good | {"labels": good["labels"] | {"orphan": orphan}}
    kept = file.read_text()
    file.write_text(yaml.safe_dump(changed, sort_keys=False))
    path = f"{BASE}/orphan/simpleenroll"
    try:
        async with asyncio.timeout(15):
            while (
                answer := await world.client.enroll(b64(make_csr("dev-orphan")[1]), path=path)
            ).status == 404:
                await asyncio.sleep(0.2)
        assert (answer.status, "issuer.unserved" in answer.text) == (503, True)
        assert answer.headers.get("Retry-After")
        assert (await world.client.enroll(b64(make_csr("dev-still")[1]))).status == 200
    finally:
        file.write_text(kept)


async def test_a_changed_profile_is_used_for_signing_and_in_csrattrs(world: World) -> None:
    file = world.stack.layout.config / "profiles.yaml"
    good = file.read_text()
    first = "key_algorithms: [ec-p256, ec-p384, rsa-2048, rsa-3072, ed25519]"
    assert first in good
    file.write_text(good.replace(first, "key_algorithms: [ed25519]", 1))
    try:
        async with asyncio.timeout(15):
            while True:
                answer = await world.client.request("GET", f"{BASE}/services/csrattrs")
                demands = parse_csrattrs(base64.b64decode(answer.body))
                if demands.key_algorithm == "ed25519":
                    break
                await asyncio.sleep(0.2)
        refused = await world.client.enroll(b64(make_csr("dev-p256")[1]))
        assert (refused.status, "profile.key_algorithm" in refused.text) == (400, True)
    finally:
        file.write_text(good)
    async with asyncio.timeout(15):
        while (await world.client.enroll(b64(make_csr("dev-p256")[1]))).status != 200:
            await asyncio.sleep(0.2)


@pytest.mark.logs_errors("configuration change rejected")
async def test_groups_of_front_ends_are_taken_over_and_explained_as_the_server_decides(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = world.stack.layout
    file = layout.config_file("ca-signer")
    good = file.read_text()
    settings = yaml.safe_load(good)
    labels = settings["groups"]["default"]["labels"]
    csr, sent = world.folder / "groups.der", make_csr("dev-groups")[1]
    csr.write_bytes(sent)
    explain = ["policy", "explain", "--policy", str(layout.config / "policy.yaml")]
    explain += ["--profiles", str(layout.config / "profiles.yaml"), "--csr", str(csr)]
    explain += ["--secret", "load", "--signer-config", str(file)]
    policy = yaml.safe_load((layout.config / "policy.yaml").read_text())

    def changed(**group: Any) -> str:
        settings["groups"]["default"] = settings["groups"]["default"] | group
        return yaml.safe_dump(settings)

    file.write_text(changed(labels=[name for name in labels if name != policy["default_label"]]))
    try:
        async with asyncio.timeout(15):
            while (refused := await world.client.enroll(b64(sent))).status != 403:
                await asyncio.sleep(0.2)
        assert estctl(explain) == 1
        last = capsys.readouterr().out.splitlines()[-1].removeprefix("refused: ")
        assert refused.text.strip().endswith(last)
        assert "[frontend.label]" in last
        # A file that is not good changes nothing.
        file.write_text(changed(labels=["no-such-label"]))
        await asyncio.sleep(0.7)
        assert (await world.client.enroll(b64(sent))).status == 403
        file.write_text("groups: [")
        await asyncio.sleep(0.7)
        assert (await world.client.enroll(b64(sent))).status == 403
    finally:
        file.write_text(good)
    async with asyncio.timeout(15):
        while (await world.client.enroll(b64(sent))).status != 200:
            await asyncio.sleep(0.2)
    assert estctl(explain) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "allowed"
    metrics = await admin_get(world.stack.suite.services["ca-signer"].admin_port, "/metrics")
    for result in ("taken", "refused"):
        assert re.search(rf'reloads_total{{result="{result}",what="rules"}} [1-9]', metrics)
