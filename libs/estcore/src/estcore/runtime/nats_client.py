"""nats-py without its WebSocket transport and without connections that lose their TLS.

The one module that imports it.

nats-py imports aiohttp for WebSockets alone. The suite connects by ``nats://`` and ``tls://``, and
aiohttp is a fifth of the CPU that ca-signer, est-renewal and est-audit spend on their start.

nats-py takes ``tls://`` as a preference: it encrypts if the server's greeting, which is in plain
text, says ``tls_required``. An attacker who changes that greeting would receive plain text.
"""

# ruff: noqa: E402 - aiohttp is hidden while nats-py is imported
from __future__ import annotations

import sys
from typing import Any

from typing_extensions import override

_HIDDEN = "aiohttp"
_imported_before = _HIDDEN in sys.modules
if not _imported_before:
    sys.modules[_HIDDEN] = None  # type: ignore[assignment] # what an absent package looks like

import nats.errors
import nats.js.errors
from nats.aio.client import Client as _Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext, api
from nkeys import NkeysError

if not _imported_before:
    del sys.modules[_HIDDEN]

BUS_ERRORS = (nats.errors.Error, OSError, RuntimeError)
"""What every call of the client can raise besides TimeoutError.

uvloop raises RuntimeError for a transport that has closed, and nats-py passes it through.
"""

__all__ = [
    "BUS_ERRORS",
    "Client",
    "JetStreamContext",
    "Msg",
    "NkeysError",
    "Subscription",
    "api",
    "nats",
]


class Client(_Client):
    """A client whose ``tls://`` is enforced."""

    @override
    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Take the server's greeting.

        Raises:
            SecureConnWantedError: the server does not encrypt, and the URL is ``tls://``.
        """
        server = self._current_server
        wanted = initial_connection and server is not None and server.uri.scheme == "tls"
        if wanted and not info.get("tls_required"):
            raise nats.errors.SecureConnWantedError
        await super()._process_info(info, initial_connection)
