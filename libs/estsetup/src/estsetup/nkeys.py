"""NKeys of NATS users, and the senders file that is derived from them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

import nkeys

from estcore.messages.signatures import MessageKey, sender_key

_USER_PREFIX = nkeys.PREFIX_BYTE_USER
SENDING = ("est-frontend", "ca-signer", "ca-signer-upstream", "check-store", "renewal", "audit")
"""Services that sign what they send; operators sign their commands, agents send nothing."""


def senders_document(
    seeds: Mapping[str, str],
    *,
    group: str = "default",
    issuers: Sequence[str] = ("issuing",),
    upstreams: Sequence[str] = (),
) -> str:
    """Return the senders file (a JWK set) for NKey seeds by NATS user; other users do not sign.

    ``issuers`` are those of the front ends' labels, ``upstreams`` those of ca-signer-upstream.
    """
    keys = []
    for service in SENDING:
        if service in seeds:
            named = {"est-frontend": issuers, "ca-signer-upstream": upstreams}.get(service, ())
            keys.append(
                sender_key(
                    MessageKey(seeds[service], "any"),
                    service,
                    group=group if service == "est-frontend" else "",
                    issuers=named,
                )
            )
    return json.dumps({"keys": keys}, indent=1) + "\n"


def new_user_seed() -> str:
    """Return a new NKey user seed."""
    seed: bytes = nkeys.encode_seed(os.urandom(32), _USER_PREFIX)
    return seed.decode()


def public_nkey(seed: str) -> str:
    """Return the public NKey of a seed."""
    public: bytes = nkeys.from_seed(bytearray(seed.encode())).public_key
    return public.decode()
