"""nats-py without its WebSocket transport: the one module that imports it.

nats-py imports aiohttp for WebSockets alone. The suite connects by ``nats://`` and ``tls://``, and
aiohttp is a fifth of the CPU that ca-signer, est-renewal and est-audit spend on their start.
"""

# ruff: noqa: E402 - aiohttp is hidden while nats-py is imported
from __future__ import annotations

import sys

_HIDDEN = "aiohttp"
_imported_before = _HIDDEN in sys.modules
if not _imported_before:
    sys.modules[_HIDDEN] = None  # type: ignore[assignment] # what an absent package looks like

import nats.errors
import nats.js.errors
from nats.aio.client import Client
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
