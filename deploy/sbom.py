"""``make sbom``: bills of materials (CycloneDX) of every image and of what devices install."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from estdeploy.services import IMAGES
from estsupply import sbom

from estcore.runtime import command_line
from estcore.runtime.command_line import CONTEXT

ROOT = Path(__file__).resolve().parents[1]
ALONE = ("estsuite-client",)
"""Distributions that are installed, and are in no image."""


def subjects() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the package and the extras behind each file."""
    images = {name: (image.package, tuple(image.extras.split())) for name, image in IMAGES.items()}
    return images | {name.removeprefix("estsuite-"): (name, ()) for name in ALONE}


@click.command(context_settings=CONTEXT)
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "dist" / "sbom")
def main(out: Path) -> int:
    """Write one bill of materials for each image and distribution."""
    uv = str(Path(sys.executable).parent / "uv")
    for name, (package, extras) in subjects().items():
        document = sbom.complete(sbom.export(uv, package, extras, ROOT))
        sbom.write(document, out / f"{name}.cdx.json")
        click.echo(f"{out / name}.cdx.json: {len(document['components'])} components")
    return 0


if __name__ == "__main__":
    sys.exit(command_line.run(main, "make sbom"))
