"""Configuration of the OpenSSL in the ``cryptography`` wheel: TLS 1.3 without session tickets.

A server of OpenSSL sends two tickets after every handshake of TLS 1.3. Sessions are not resumed
here (docs/adr/0005), so no client can use them. Neither pyOpenSSL nor its binding has
``SSL_CTX_set_num_tickets``, and ``SSL_OP_NO_TICKET`` only chooses the kind of ticket. The only
way is OpenSSL's configuration file, which it reads once, when it is loaded.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

_VARIABLE = "OPENSSL_CONF"
_FILE = Path(__file__).with_name("openssl.cnf")


def load() -> None:
    """Load the wheel's OpenSSL with our configuration, unless the operator has one.

    The variable is gone afterwards: the standard library and child processes have an OpenSSL of
    the distribution, and read the distribution's file.
    """
    if _VARIABLE in os.environ:
        return
    os.environ[_VARIABLE] = str(_FILE)
    try:
        import_module("cryptography.hazmat.bindings.openssl.binding")
    finally:
        del os.environ[_VARIABLE]
