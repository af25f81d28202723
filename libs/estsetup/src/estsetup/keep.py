"""Secrets that are written once, and commands of the suite that make others."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

from estcore.errors import ConfigurationError


def keep_secret(path: Path, text: str) -> None:
    """Write a secret file once, readable by its owner only."""
    if path.exists():
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def keep_password(path: Path) -> None:
    """Make a password of 192 random bits once."""
    if not path.exists():
        keep_secret(path, secrets.token_urlsafe(24))


def run(command: str, *arguments: str) -> str:
    """Carry out a command that is installed beside this Python; returns what it prints.

    Raises:
        ConfigurationError: it is not there, or it fails; with its own line.
    """
    path = Path(sys.executable).parent / command
    if not path.exists():
        raise ConfigurationError(f"{command} is not installed beside {sys.executable}")
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ConfigurationError(f"{command} {arguments[0]}: {lines[-1]}")
    return done.stdout
