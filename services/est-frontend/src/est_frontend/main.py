"""Command line of ``est-frontend``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from est_frontend.app import digest_key, serve, token_sources
from est_frontend.audit_trail.trail import SERVICE
from est_frontend.auth.password_file import PasswordFile
from est_frontend.enrollment.server_keygen import load_secrets
from est_frontend.listener import TLSListener
from est_frontend.settings import FrontendSettings
from estcore.policy.document import load_policy
from estcore.runtime.console import console_script
from estcore.runtime.logs import fields
from estcore.runtime.service import ServiceCommand

log = logging.getLogger(__name__)


def check(settings: FrontendSettings) -> None:
    """Read what the settings name, as ``run`` would."""
    load_policy(settings.policy_file)
    TLSListener(settings.listen)
    PasswordFile.load(settings.users_file)
    load_secrets(settings.keygen_secrets_file)
    digest_key(settings)
    token_sources(settings)


async def run(settings: FrontendSettings) -> None:
    """Serve until SIGTERM."""
    await serve(settings, TLSListener(settings.listen))


async def migrate(settings: FrontendSettings) -> None:
    """There is no database and no stream of our own; say so."""
    log.info("nothing to migrate", extra=fields(instance=settings.instance))


_COMMAND = ServiceCommand(
    SERVICE,
    about="Speaks EST (RFC 7030) to clients.",
    distribution="estsuite-frontend",
    prefix="EST_FRONTEND",
    settings=FrontendSettings,
    run=run,
    migrate=migrate,
    check=check,
)


@console_script
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``est-frontend``."""
    return _COMMAND.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
