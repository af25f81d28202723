"""Fixtures: real servers for every test that needs them.

Each test module gets its own, in a folder that is removed afterwards; where they come from is
told in ``tests/support/servers.py``. Nothing here is ever skipped.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from error_log import ERRORS
from hypothesis import settings as hypothesis_settings
from servers import make_nats, make_postgres

from estcore.messages import permissions
from estcore.runtime.settings import BusSettings, DatabaseSettings
from estdev.nats import EmbeddedNATS
from estdev.postgres import EmbeddedPostgres, Role

hypothesis_settings.register_profile("dev", max_examples=50, deadline=None)
hypothesis_settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True)
hypothesis_settings.load_profile("ci" if os.environ.get("CI") else "dev")

SERVICES = ("ca-signer", "renewal", "audit")


@dataclass
class Platform:
    """A PostgreSQL and a NATS with every role and user of the suite."""

    postgres: EmbeddedPostgres
    nats: EmbeddedNATS
    roles: dict[str, Role]

    def bus(self, user: str) -> BusSettings:
        """Return how ``user`` reaches NATS (with the right to migrate)."""
        return BusSettings(
            url=self.nats.url,
            nkey_seed_file=self.nats.seed_file(user),
            migration_nkey_seed_file=self.nats.seed_file("migrate"),
        )

    def database(self, service: str) -> DatabaseSettings:
        """Return how a service reaches its schema (with the owner's access to migrate)."""
        role = self.roles[service]
        return DatabaseSettings(
            url=self.postgres.url(role.runtime),
            password_file=role.runtime_password_file,
            migration_url=self.postgres.url(role.owner),
            migration_password_file=role.owner_password_file,
        )


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A fresh PostgreSQL and NATS for the module."""
    folder: Path = tmp_path_factory.mktemp("platform")
    postgres = make_postgres(folder)
    nats = make_nats(
        folder,
        {
            "migrate": permissions.provisioner(),
            "est-frontend": permissions.frontend("default"),
            "ca-signer": permissions.signer(),
            "ca-signer-upstream": permissions.upstream(["corporate"]),
            "renewal": permissions.renewal(),
            "audit": permissions.audit(),
            "operator": permissions.operator(),
            "agent": permissions.agent("demo", "web"),
        },
    )
    asyncio.run(postgres.start())
    try:
        roles = asyncio.run(postgres.provision(SERVICES))
        asyncio.run(nats.start())
        yield Platform(postgres, nats, roles)
    finally:
        asyncio.run(nats.stop(kill=True))
        asyncio.run(postgres.stop(immediate=True))
        shutil.rmtree(postgres.home, ignore_errors=True)


def _expected(node: pytest.Item) -> set[str]:
    return {message for mark in node.iter_markers("logs_errors") for message in mark.args}


@pytest.fixture(scope="module")
def expected_errors() -> set[str]:
    """Messages at level error that the module's tests so far have asked for."""
    return set()


@pytest.fixture(autouse=True)
def no_unexpected_error_is_logged(
    request: pytest.FixtureRequest, expected_errors: set[str]
) -> Iterator[None]:
    """Fail the test after which a log has an error line that no test asked for."""
    expected_errors |= _expected(request.node)
    root = logging.getLogger()
    root.addHandler(ERRORS)
    yield
    root.removeHandler(ERRORS)
    lines = ERRORS.unexpected(expected_errors)
    assert not lines, "error lines that no test asked for (logs_errors):\n" + "\n".join(lines)
