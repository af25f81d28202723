"""The rendered ``accounts`` block is the one the tests and ``estsuite up`` run with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from estdeploy.services import SERVICES

from estcore.errors import ConfigurationError
from estcore.messages.accounts import server_accounts
from estdev.nats import EmbeddedNATS, new_user_seed, public_nkey
from estsetup import nats

AGENT = ("demo", "web")


def test_every_service_the_migration_and_operators_have_a_user() -> None:
    assert set(nats.users()) == {*SERVICES, "migrate", "operator", "check-store"}


def test_the_block_equals_that_of_the_embedded_server(tmp_path: Path) -> None:
    names = nats.users(agents=(AGENT,))
    embedded = EmbeddedNATS(tmp_path, 4222, names)
    keys = nats.public_keys(tmp_path / "secrets", names) if _folder(tmp_path) else {}
    embedded._write_config()
    assert server_accounts(names, keys) == json.loads(embedded.config_file.read_text())["accounts"]


def test_the_server_takes_the_rendered_block(root: Path, tmp_path: Path) -> None:
    script = root / "deploy" / "nats" / "render.py"
    out = subprocess.run(
        [sys.executable, script, "--seeds", tmp_path / "seeds", "--agent", "demo/web"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (tmp_path / "accounts.conf").write_text(out)
    config = tmp_path / "nats.conf"
    config.write_text('jetstream { store_dir: "js" }\ninclude "./accounts.conf"\n')
    server = Path(sys.executable).parent / "nats-server"
    done = subprocess.run([server, "-t", "-c", config], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for seed in (tmp_path / "seeds").iterdir():
        assert seed.read_text() not in out


def test_public_keys_can_be_given(root: Path) -> None:
    keys = {name: public_nkey(new_user_seed()) for name in nats.users()}
    arguments = [f"--user={name}={key}" for name, key in keys.items()]
    script = root / "deploy" / "nats" / "render.py"
    done = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, check=True
    )
    block = json.loads(done.stdout.removeprefix("accounts: "))
    assert {u["nkey"] for account in block.values() for u in account["users"]} == set(keys.values())


def test_an_upstream_process_has_permissions_for_its_issuers_only(root: Path) -> None:
    names = nats.users(upstreams=("corporate",))
    keys = {name: public_nkey(new_user_seed()) for name in names}
    arguments = [f"--user={name}={key}" for name, key in keys.items()]
    script = root / "deploy" / "nats" / "render.py"
    done = subprocess.run(
        [sys.executable, script, "--upstream", "corporate", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    block = json.loads(done.stdout.removeprefix("accounts: "))
    account = block["ca-signer-upstream"]
    (mine,) = account["users"]
    assert mine["nkey"] == keys["ca-signer-upstream"]
    publish = mine["permissions"]["publish"]
    allowed = publish["allow"] if isinstance(publish, dict) else publish
    imported = {i["service"]["subject"] for i in account["imports"] if "service" in i}
    assert {t for t in allowed if not t.startswith("est.reply.")} == imported
    assert "pki.state.cacerts.corporate" in allowed
    fetching = [topic for topic in allowed if "CONSUMER.MSG.NEXT" in topic]
    assert len(fetching) == 4
    assert all(".signer-corporate-" in topic for topic in fetching)
    assert not [topic for topic in allowed if topic.startswith(("pki.state.crl", "pki.ca"))]


def test_a_user_without_key_and_a_key_for_two_are_refused() -> None:
    names = nats.users()
    same = dict.fromkeys(names, public_nkey(new_user_seed()))
    with pytest.raises(ConfigurationError, match="the same NKey"):
        server_accounts(names, same)
    del same["audit"]
    with pytest.raises(ConfigurationError, match="no public NKey for audit"):
        server_accounts(names, same)


def _folder(tmp_path: Path) -> bool:
    (tmp_path / "secrets").mkdir(mode=0o700)
    return True


def test_both_keys_of_a_user_connect_while_it_is_replaced() -> None:
    names = nats.users()
    before = {name: public_nkey(new_user_seed()) for name in names}
    after = before | {"renewal": public_nkey(new_user_seed())}
    block = server_accounts(names, after, before)
    users = block["renewal"]["users"]
    assert [user["nkey"] for user in users] == [after["renewal"], before["renewal"]]
    assert users[0]["permissions"] == users[1]["permissions"]
    assert len(block["audit"]["users"]) == 1
    with pytest.raises(ConfigurationError, match="two users"):
        server_accounts(names, after, {"audit": after["renewal"]})
