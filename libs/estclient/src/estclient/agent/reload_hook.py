"""The command that makes a service reload its certificate."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from estclient.agent.settings import HookSettings
from estclient.errors import NotInUse


async def run_hook(settings: HookSettings, current: Path) -> None:
    """Run the command with the paths of the current credential in its environment.

    Raises:
        NotInUse: it failed or took too long.
    """
    environment = os.environ | {
        "EST_CERTIFICATE_FILE": str(current.absolute() / "cert.pem"),
        "EST_KEY_FILE": str(current.absolute() / "key.pem"),
        "EST_CA_FILE": str(current.absolute() / "ca.pem"),
    }
    try:
        process = await asyncio.create_subprocess_exec(*settings.command, env=environment)
    except OSError as exc:
        raise NotInUse("the hook cannot be started", code="client.hook_failed") from exc
    try:
        async with asyncio.timeout(settings.timeout_s):
            code = await process.wait()
    except TimeoutError as exc:
        process.kill()
        await process.wait()
        raise NotInUse("the hook did not end in time", code="client.hook_failed") from exc
    finally:
        if process.returncode is None:  # the agent ends, or gets another definition
            process.kill()
    if code != 0:
        raise NotInUse(f"the hook ended with {code}", code="client.hook_failed")
