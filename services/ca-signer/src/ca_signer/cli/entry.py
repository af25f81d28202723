"""Entry point of ``ca-signer``: ceremonies and tokens without a service, the rest with it."""

from __future__ import annotations

import sys

from estcore.runtime.console import console_script


@console_script
def main() -> None:
    """Hand over to ceremony or token, which run offline, or to the service's command line.

    Each is imported when it is wanted: ceremony and token need no bus.
    """
    if sys.argv[1:2] == ["ca"]:
        from ca_signer.cli import ca

        sys.exit(ca.main(sys.argv[2:]))
    if sys.argv[1:2] == ["token"]:
        from ca_signer.cli import hsm

        sys.exit(hsm.main(sys.argv[2:]))
    from ca_signer.cli import service

    service.run()
