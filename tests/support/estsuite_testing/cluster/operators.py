"""An operator of an installation, and the secret that he makes for clients outside."""

from __future__ import annotations

import json

from estsuite_testing.cluster.installation import Installation, is_ready, until
from estsuite_testing.cluster.load import Client
from estsuite_testing.e2e_stack import make_csr


async def enroll_operator(cluster: Installation) -> None:
    """Have the operator's certificate issued, and wait for the pod in which he gives commands."""
    request = (cluster.keys / "operator.csr").read_bytes()
    enroll = ("ca-signer", "operator", "enroll", "--csr", "-", "--out", "-")
    certificate = await cluster.exec("deployment/ca-signer", *enroll, given=request)
    (cluster.keys / "operator.pem").write_bytes(certificate)
    await cluster.apply_keys()

    async def there() -> bool:
        return is_ready(await cluster.get("pod", "estctl-0"))

    await until(there, 180, "estctl-0")


async def new_secret(cluster: Installation) -> str:
    """Make the secret of web-bootstrap by the operator's command."""
    create = ("estctl", "secret", "create", "--id", "web-bootstrap", "--json")
    made: str = json.loads(await cluster.exec("estctl-0", *create))["secret"]
    return made


async def client_of(cluster: Installation) -> Client:
    """Return a client with a secret that every front end knows."""
    await enroll_operator(cluster)
    client = await Client.of(cluster, await new_secret(cluster))

    async def known() -> bool:
        status, _, _ = await client.enroll_once(make_csr("other.clinic.example")[1])
        return status == 403

    await until(known, 20, "the secret is known")
    return client
