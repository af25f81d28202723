"""Connections without TLS: to this machine only."""

from __future__ import annotations

from typing import Any, cast

import asyncpg
import pytest
from asyncpg import connect_utils
from hypothesis import given
from hypothesis import strategies as st

from estcore.errors import ConfigurationError
from estcore.runtime.plaintext import is_local, remote_postgres
from estcore.runtime.service import _warn_of_plaintext
from estcore.runtime.settings import BusSettings, DatabaseSettings, ServiceSettings

BUS: dict[str, Any] = {"nkey_seed_file": "/x"}

LOCAL = ("localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]")
REMOTE = (
    *("nats", "nats.example", "10.0.0.1", "[fd00::1]", "[::]", "[::ffff:10.0.0.1]"),
    *("localhost.example", "127.0.0.1.example", "0177.0.0.1", "2130706433"),
)


@pytest.mark.parametrize("host", LOCAL)
def test_nats_and_postgres_on_this_machine_need_no_tls(host: str) -> None:
    BusSettings(url=f"nats://{host}:4222", **BUS)
    DatabaseSettings(url=f"postgresql://u@{host}:5432/d")
    DatabaseSettings(url=f"postgresql://u@{host}/d")


@pytest.mark.parametrize("host", REMOTE)
def test_nats_on_another_machine_needs_tls(host: str) -> None:
    for url in (f"nats://{host}:4222", f"nats://{host}", f"tls://{host},nats://{host}:4222"):
        with pytest.raises(ConfigurationError, match="use tls://") as caught:
            BusSettings(url=url, **BUS)
        assert caught.value.code == "connection.plaintext"
        assert host in caught.value.reason
        assert BusSettings(url=url, allow_plaintext=True, **BUS).plaintext == [url.split(",")[-1]]
    assert BusSettings(url=f"tls://{host}:4222", **BUS).plaintext == []


@pytest.mark.parametrize("host", REMOTE)
@pytest.mark.parametrize(
    "url",
    [
        *("postgresql://u@{0}/d", "postgresql://u@{0}:5432/d", "postgresql://u@localhost,{0}/d"),
        *("postgresql://u@/d?host={0}", "postgresql://u@localhost/d?host=/run/pg,{0}"),
    ],
)
def test_postgres_on_another_machine_needs_tls(host: str, url: str) -> None:
    url = url.format(host)
    for values in ({"url": url}, {"url": "postgresql://u@localhost/d", "migration_url": url}):
        with pytest.raises(ConfigurationError, match="ca_file") as caught:
            DatabaseSettings(**values)
        assert caught.value.code == "connection.plaintext"
        assert DatabaseSettings(allow_plaintext=True, **values).plaintext == [host.strip("[]")]
        assert DatabaseSettings(ca_file="/ca.pem", **values).plaintext == []


@given(
    user=st.sampled_from(["u", "u%40v"]),
    authority=st.lists(
        st.sampled_from(
            [
                *("", "localhost", "127.0.0.1", "[::1]", "%2Frun%2Fpg", "db.example", "10.0.0.1"),
                *("[fd00::1]", "db.example:5433", "localhost:1", "db@localhost", "[::1]:5"),
            ]
        ),
        max_size=2,
    ),
    parameter=st.lists(
        st.sampled_from(["/run/pg", "localhost", "db.example", "10.0.0.1:5", "::1"]), max_size=2
    ),
)
def test_no_url_by_which_the_driver_goes_to_another_machine_is_accepted(
    user: str, authority: list[str], parameter: list[str]
) -> None:
    url = f"postgresql://{user}@{','.join(authority)}/d"
    if parameter:
        url += f"?host={','.join(parameter)}"
    try:
        addresses, *_ = cast("Any", connect_utils)._parse_connect_dsn_and_args(
            dsn=url,
            **dict.fromkeys(
                (
                    *("host", "port", "user", "password", "passfile", "database", "service"),
                    *("servicefile", "direct_tls", "server_settings", "target_session_attrs"),
                    *("krbsrvname", "gsslib"),
                )
            ),
            ssl=False,
        )
    except (ValueError, IndexError, asyncpg.ClientConfigurationError):
        return  # the driver does not take it
    remote = [a for a in addresses if isinstance(a, tuple) and not is_local(a[0])]
    if remote:
        assert remote_postgres(url, {}), addresses


def test_a_service_of_postgres_may_be_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="service far"):
        DatabaseSettings(url="postgresql://u@localhost/d?service=far")
    monkeypatch.setenv("PGSERVICE", "far")
    with pytest.raises(ConfigurationError, match="service far"):
        DatabaseSettings(url="postgresql://u@/d")


def test_a_postgres_url_without_host_is_a_unix_socket_or_pghost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PGHOST", raising=False)
    for url in ("postgresql://u@/d", "postgresql://u@%2Frun%2Fpg/d", "postgresql://u@/d?host=/run"):
        DatabaseSettings(url=url)
    monkeypatch.setenv("PGHOST", "db.example")
    with pytest.raises(ConfigurationError, match=r"db\.example"):
        DatabaseSettings(url="postgresql://u@/d")


def test_each_start_reports_the_plaintext_it_allows(caplog: pytest.LogCaptureFixture) -> None:
    for url, reported in (("nats://nats:4222", ["bus.allow_plaintext"]), ("nats://127.0.0.1", [])):
        caplog.clear()
        _warn_of_plaintext(ServiceSettings(bus=BusSettings(url=url, allow_plaintext=True, **BUS)))
        assert [r.__dict__["fields"]["setting"] for r in caplog.records] == reported
