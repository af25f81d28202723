"""Entry point of ``ca-signer``: ceremonies without a service, everything else with it."""

from __future__ import annotations

import sys


def main() -> None:
    """Hand over to the ceremony, which runs offline, or to the service's command line.

    Each is imported when it is wanted: a ceremony needs neither bus nor database.
    """
    if sys.argv[1:2] == ["ca"]:
        from ca_signer import ceremony_command

        sys.exit(ceremony_command.main(sys.argv[2:]))
    from ca_signer import main as service

    service.main()
