"""Compilers and runtimes for foreign programs: the machine's, of the virtual environment, or Debian's.

Go and Node are wheels of the dependency group ``interop`` (``make interop`` installs it); a JDK and
Rust are the machine's where they are good enough, else Debian's packages, unpacked without root.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from estsuite_testing.debian import SYSTEM, debian_packages, environment, mend_links

_JDK_PACKAGES = ("openjdk-17-jdk-headless", "openjdk-21-jdk-headless")
_RUST_PACKAGES = (("cargo-web", "rustc-web"), ("cargo", "rustc"))
_OLDEST_JAVA, _OLDEST_RUST = 17, (1, 85)
_GROUP = "run it by `make interop`, which installs the dependency group interop"


def with_path(*folders: Path) -> dict[str, str]:
    """Return this process's environment with folders first in PATH."""
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")])
    return os.environ | {"PATH": path}


def of_group(command: str) -> Path:
    """Return a command of the dependency group, else the machine's.

    Raises:
        RuntimeError: neither has it.
    """
    own = Path(sys.executable).parent / command
    found = str(own) if own.exists() else shutil.which(command)
    if found is None:
        raise RuntimeError(f"there is no {command}: {_GROUP}")
    return Path(found)


def jdk() -> tuple[Path, dict[str, str]]:
    """Return the folder with java, javac and keytool of a JDK from 17 on, and an environment.

    Raises:
        RuntimeError: there is none, and Debian's cannot be fetched.
    """
    found = shutil.which("javac")
    if found is not None and _version(found, r"javac (\d+)") >= (_OLDEST_JAVA,):
        return Path(found).resolve().parent, dict(os.environ)
    failures = []
    for package in _JDK_PACKAGES:
        try:
            root = debian_packages(package)
        except RuntimeError as exc:
            failures.append(str(exc))
            continue
        home = next(p.parent for p in sorted((root / "usr/lib/jvm").glob("java-[1-9]*/bin/javac")))
        if root != SYSTEM:
            mend_links(root, "usr/lib/jvm")
        return home, environment(root)
    raise RuntimeError("no JDK from 17 on, and Debian's cannot be had: " + "; ".join(failures))


def rust() -> dict[str, str]:
    """Return an environment in which cargo, rustc and a C compiler are found.

    Raises:
        RuntimeError: there is none that is new enough, and Debian's cannot be fetched.
    """
    if shutil.which("cc") is None:
        raise RuntimeError(
            "there is no C compiler: install gcc (Debian: apt install gcc libc6-dev)"
        )
    found = shutil.which("cargo")
    if found is not None and _version(found, r"cargo (\d+)\.(\d+)") >= _OLDEST_RUST:
        return dict(os.environ)
    failures = []
    for packages in _RUST_PACKAGES:
        try:
            env = environment(debian_packages(*packages))
        except RuntimeError as exc:
            failures.append(str(exc))
            continue
        cargo = shutil.which("cargo", path=env["PATH"])
        if cargo is not None and _version(cargo, r"cargo (\d+)\.(\d+)", env) >= _OLDEST_RUST:
            return env
        failures.append(f"{' '.join(packages)} is older")
    raise RuntimeError(
        f"no Rust from {'.'.join(map(str, _OLDEST_RUST))} on (https://rustup.rs), and Debian's "
        "cannot be had: " + "; ".join(failures)
    )


def _version(command: str, pattern: str, env: dict[str, str] | None = None) -> tuple[int, ...]:
    done = subprocess.run(
        [command, "--version"], capture_output=True, text=True, check=False, env=env
    )
    match = re.search(pattern, done.stdout + done.stderr)
    return tuple(map(int, match.groups())) if match else ()
