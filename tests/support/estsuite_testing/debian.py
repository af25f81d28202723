"""Debian packages for tests, unpacked into a cache: no root, nothing of the system is touched.

``debian_packages("softhsm2", "libsofthsm2")`` returns a folder with ``usr/bin``, ``usr/lib`` …
of the packages and of whatever they need that is not installed; ``/`` when all of them are.
``environment`` says how programs of that folder find their libraries. apt works with state and
cache folders of its own; the machine's package lists are used where they are good enough.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from estsuite_testing.build_cache import cache_folder, locked

SYSTEM = Path("/")


def debian_packages(*names: str) -> Path:
    """Return the root under which the files of the packages are.

    Raises:
        RuntimeError: this is no Debian, or the packages cannot be fetched; says what apt said.
    """
    if all(_installed(name) for name in names):
        return SYSTEM
    if shutil.which("apt-get") is None:
        raise RuntimeError(f"install {' '.join(names)}: this machine has no apt-get")
    home = cache_folder() / "debian" / _release()
    root = home / "+".join(sorted(names))
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / "lock"):
        if not root.exists():
            _fetch(names, home, root)
    return root


def environment(root: Path) -> dict[str, str]:
    """Return this process's environment, with programs and libraries of ``root`` found first."""
    found = dict(os.environ)
    if root == SYSTEM:
        return found
    libraries = sorted({path.parent for path in root.glob("**/lib*/**/*.so*")})
    for name, places in (
        ("PATH", [root / "usr/sbin", root / "usr/bin"]),
        ("LD_LIBRARY_PATH", libraries),
    ):
        before = [found[name]] if found.get(name) else []
        found[name] = os.pathsep.join([*map(str, places), *before])
    return found


def mend_links(root: Path, folder: str) -> None:
    """Let absolute links of a package, for example into /etc, lead to where it was unpacked."""
    for path in (root / folder).rglob("*"):
        if path.is_symlink() and path.readlink().is_absolute():
            there = root / path.readlink().relative_to("/")
            if there.exists():
                # In one step: another process may be starting a program of the package.
                mended = path.with_name(f".{path.name}.{os.getpid()}")
                mended.symlink_to(there)
                mended.replace(path)


def _installed(name: str) -> bool:
    if shutil.which("dpkg-query") is None:
        return False
    done = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${db:Status-Status}", name],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout == "installed"


def _release() -> str:
    architecture = _run(["dpkg", "--print-architecture"]).strip()
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    return f"{found.get('VERSION_CODENAME', 'unknown')}-{architecture}"


def _fetch(names: Sequence[str], home: Path, root: Path) -> None:
    lists = home / "apt" / "lists"
    try:
        # The machine's lists first: images of containers often have none, or old ones.
        packages = _download(names, home, Path("/var/lib/apt/lists"))
    except RuntimeError:
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        _run(["apt-get", "--quiet", *_options(home, lists), "update"])
        packages = _download(names, home, lists)
    with tempfile.TemporaryDirectory(dir=home) as folder:
        unpacked = Path(folder) / "root"
        for package in packages:
            _run(["dpkg-deb", "--extract", str(package), str(unpacked)])
        unpacked.rename(root)


def _download(names: Sequence[str], home: Path, lists: Path) -> list[Path]:
    options = _options(home, lists)
    # What would be installed: the packages, and what they need that is not here.
    plan = _run(["apt-get", *options, "--simulate", "--no-install-recommends", "install", *names])
    # "Inst name [installed version] (…": an upgrade; the installed one has to do.
    steps = [line.split() for line in plan.splitlines() if line.startswith("Inst ")]
    wanted = {step[1] for step in steps if not step[2].startswith("[")}
    # One that is installed stays out of the plan, yet its files belong under the root as well.
    wanted |= set(names)
    folder = home / "packages"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    _run(["apt-get", "--quiet", *options, "download", *sorted(wanted)], cwd=folder)
    found = sorted(folder.glob("*.deb"))
    if not found:
        raise RuntimeError(f"apt-get downloaded nothing for {' '.join(sorted(wanted))}")
    return found


def _options(home: Path, lists: Path) -> list[str]:
    state, cache = home / "apt" / "state", home / "apt" / "cache"
    for folder in (state, cache / "archives" / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    values = {
        "Dir::State": state,
        "Dir::State::lists": lists,
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": cache,
        "Debug::NoLocking": "true",
        # As root apt would change to a user of its own, who cannot write here.
        "APT::Sandbox::User": "root",
    }
    return [part for name, value in values.items() for part in ("-o", f"{name}={value}")]


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False,
        env=os.environ | {"LC_ALL": "C"},
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
