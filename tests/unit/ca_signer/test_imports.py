"""What the process that holds the CA key loads."""

from __future__ import annotations

import subprocess
import sys

HTTP = ("requests", "aiohttp", "urllib3", "OpenSSL")


def test_the_process_with_the_ca_key_loads_no_http_client_unless_it_sends_traces() -> None:
    """The image has one, of the trace exporter."""
    code = f"import ca_signer.main, sys; print([m for m in {HTTP!r} if sys.modules.get(m)])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
