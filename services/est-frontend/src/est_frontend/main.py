"""Command line of ``est-frontend``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from est_frontend.app import check, migrate, serve
from est_frontend.audit_trail.trail import SERVICE
from est_frontend.listener import TLSListener
from est_frontend.settings import FrontendSettings
from estcore.runtime.console import console_script
from estcore.runtime.service import ServiceCommand


async def run(settings: FrontendSettings) -> None:
    """Serve until SIGTERM."""
    await serve(settings, TLSListener(settings.listen))


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
