"""What an installation has on record, read out of its pods and compared with what clients have."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

from estsuite_testing.cluster.installation import BIN, Installation, until


async def until_recorded(cluster: Installation, out: Path) -> None:
    """Export the audit log until it names every certificate that clients have."""

    async def every() -> bool:
        sealed = ("est-audit", "export", "--sealed", "--out", "-")
        out.write_bytes(await cluster.exec("deployment/audit", *sealed))
        text = out.read_text().lower()
        return all(f"{serial:x}" in text for serial in cluster.serials)

    await until(every, 120, "every certificate is on record", every_s=5)


async def in_ledger(cluster: Installation, serials: set[int]) -> set[int]:
    """Return those serial numbers whose issuance is complete in the ledger."""
    command = ("ca-signer", "export", "--out", "-")
    rows = _rows(await cluster.exec("deployment/ca-signer", *command))
    return serials & {int(row["serial"], 16) for row in rows if row.get("state") == "issued"}


async def in_slots(cluster: Installation, serials: set[int]) -> set[int]:
    """Return those serial numbers that renewal knows."""
    command = ("est-renewal", "export", "--out", "-")
    rows = _rows(await cluster.exec("deployment/renewal", *command))
    return serials & {int(row["serial"], 16) for row in rows}


async def in_log(cluster: Installation, serials: set[int]) -> set[int]:
    """Return those serial numbers that the audit log names."""
    command = ("est-audit", "export", "--sealed", "--out", "-")
    text = (await cluster.exec("deployment/audit", *command)).decode().lower()
    return {serial for serial in serials if f"{serial:x}" in text}


def _rows(exported: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in exported.splitlines()]


async def assert_records_agree(cluster: Installation, folder: Path) -> None:
    """Each certificate of a client is in the ledger once, and ledger, slots and audit log agree."""
    exported, ledger, slots = (folder / f"{n}.jsonl" for n in ("audit", "ledger", "renewal"))
    await until_recorded(cluster, exported)
    export = ("export", "--out", "-")
    ledger.write_bytes(await cluster.exec("deployment/ca-signer", "ca-signer", *export))
    slots.write_bytes(await cluster.exec("deployment/renewal", "est-renewal", *export))
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    issued = [
        int(row["serial"], 16)
        for row in rows
        if row.get("state") == "issued" and row["service"] == "web"
    ]
    assert len(issued) == len({*issued})
    assert {*issued} >= cluster.serials
    # One more for a request whose answer was lost to a client that then ended: none here.
    assert len(issued) == len(cluster.serials)
    verifier = (cluster.keys / "audit.vkey").read_text().strip()
    verify = ("audit", "verify", "--export", exported, "--vkey", verifier)
    done = await asyncio.to_thread(
        lambda: subprocess.run(
            [BIN / "estctl", *verify, "--cross", ledger, "--renewal", slots],
            capture_output=True,
            text=True,
            check=False,
        )
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified" in done.stdout
