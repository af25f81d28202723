"""Rules for ``uv.lock`` that need no network: origin, hashes, age and licences of everything."""

from __future__ import annotations

import datetime as dt
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from license_expression import ExpressionError, get_spdx_licensing

from estcore.errors import ConfigurationError

INDEX = "https://pypi.org/simple"
_FILES = "https://files.pythonhosted.org/packages/"
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_SOURCES = {"registry", "editable", "virtual"}
MIN_AGE = dt.timedelta(days=7)
"""How long an artifact must have been public: most malicious releases are removed within days."""
ALLOWED = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "ISC",
        "LicenseRef-Public-Domain",
        "MIT",
        "MIT-0",
        "MPL-2.0",
        "PSF-2.0",
        "Unlicense",
    }
)
"""Licences that any distribution of the suite may depend on."""
EXCEPTIONS = {
    "tlslite-ng": "LGPL-2.1-only",  # ADR 0033: of estsuite-frontend-srp alone
    # ADR 0054: permissive, but of the group bench alone
    "numpy": "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0",
    "pillow": "MIT-CMU",
    # ADR 0066: of the group interop alone, which checks Sigma rules
    "pysigma": "LGPL-2.1-only",
    "pysigma-backend-elasticsearch": "LGPL-3.0-only",
    "pysigma-backend-opensearch": "LGPL-3.0-only",
}
"""A dependency with a licence that only it may have."""
Package = dict[str, Any]


def read(path: Path) -> list[Package]:
    """Return the packages of a lock file.

    Raises:
        ConfigurationError: it is not there, or is no lock of uv.
    """
    try:
        found: list[Package] = tomllib.loads(path.read_text(encoding="utf-8"))["package"]
    except (OSError, ValueError, KeyError) as exc:
        raise ConfigurationError(f"{path.name} cannot be read: {exc}") from exc
    return found


def _artifacts(package: Package) -> Iterator[dict[str, Any]]:
    yield from package.get("wheels", [])
    if "sdist" in package:
        yield package["sdist"]


def come_from_the_index(packages: list[Package]) -> list[str]:
    """Everything is of PyPI, or a member of this workspace: no Git, no URL, no other index."""
    findings = []
    for package in packages:
        name, source = package["name"], package["source"]
        if not source.keys() <= _SOURCES or source.get("registry", INDEX) != INDEX:
            findings.append(f"{name}: comes from {source}")
        if "registry" in source and not list(_artifacts(package)):
            findings.append(f"{name}: has no artifact")
        findings += [
            f"{name}: {artifact.get('url')} is not of {_FILES}"
            for artifact in _artifacts(package)
            if not str(artifact.get("url")).startswith(_FILES)
        ]
    return findings


def have_hashes(packages: list[Package]) -> list[str]:
    """Every artifact has its SHA-256."""
    return [
        f"{package['name']}: no SHA-256 of {artifact.get('url')}"
        for package in packages
        for artifact in _artifacts(package)
        if not _HASH.fullmatch(str(artifact.get("hash")))
    ]


def are_old_enough(packages: list[Package], now: dt.datetime) -> list[str]:
    """Every artifact was public for seven days, and says since when."""
    findings = []
    for package in packages:
        for artifact in _artifacts(package):
            uploaded = artifact.get("upload-time")
            if uploaded is None:
                findings.append(f"{package['name']}: {artifact.get('url')} has no upload time")
            elif now - dt.datetime.fromisoformat(str(uploaded)) < MIN_AGE:
                findings.append(f"{package['name']} {package['version']}: uploaded {uploaded}")
                break
    return findings


def have_allowed_licences(
    packages: list[Package], licence_of: Callable[[str], str | None]
) -> list[str]:
    """Every dependency has a known licence that is on the list."""
    findings = []
    for package in packages:
        name = package["name"]
        if "registry" not in package["source"]:
            continue
        licence = licence_of(name)
        if licence is None:
            findings.append(f"{name}: the licence is not known")
        elif not _allowed(name, licence):
            findings.append(f"{name}: {licence} is not on the list of licences")
    return findings


@cache
def _licensing() -> Any:
    return get_spdx_licensing()


def _allowed(name: str, licence: str) -> bool:
    if EXCEPTIONS.get(name) == licence:
        return True
    licensing = _licensing()
    try:
        expression = licensing.parse(licence.replace("LicenseRef-Public-Domain", "Unlicense"))
    except ExpressionError:
        return False
    known = {licensing.parse(one, validate=False) for one in ALLOWED}
    # Every part of an "and", one part of an "or": each allowed licence counts as true.
    true = licensing.TRUE
    return bool(expression.subs(dict.fromkeys(known, true), simplify=True) == true)
