"""What ``.dockerignore`` sends to the builder, by the rules of Docker 20.10."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from estsuite_testing.build_context import build_context, read_patterns

STARS_IN_EXCEPTIONS = """\
*
!pyproject.toml
!uv.lock
!libs/*/pyproject.toml
!libs/*/src
!services/*/pyproject.toml
!services/*/src
**/__pycache__
**/*.pyc
"""
"""A file that BuildKit from 23 on understands, and older builders do not."""


def tree(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("x")
    return folder


def members(root: Path) -> list[Path]:
    """The distributions that the images are built from."""
    groups = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]
    found = [p for group in groups["members"] for p in root.glob(group)]
    return sorted(
        p.relative_to(root)
        for p in found
        if (p / "pyproject.toml").is_file() and p.relative_to(root).parts[0] != "tests"
    )


def test_stars_in_exceptions_leave_these_builders_without_sources(root: Path) -> None:
    """The failure is "COPY failed: file not found in build context … stat libs"."""
    assert build_context(root, STARS_IN_EXCEPTIONS) == ["pyproject.toml", "uv.lock"]


def test_every_distribution_is_sent(root: Path) -> None:
    sent = set(build_context(root, (root / ".dockerignore").read_text()))
    wanted = {"pyproject.toml", "uv.lock"}
    wanted |= {"deploy/requirements-uv.txt"}
    wanted |= {f"deploy/estsupply/{name}.py" for name in ("sbom", "strip_symbols")}
    for member in members(root):
        wanted.add(f"{member}/pyproject.toml")
        wanted |= {
            str(p.relative_to(root))
            for p in (root / member / "src").rglob("*")
            if p.is_file() and "__pycache__" not in p.parts
        }
    assert sorted(wanted - sent) == []
    assert sorted(sent - wanted) == []


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        ".git/config",
        ".venv/bin/python",
        ".estsuite/secrets/ca.key",
        "local/secrets/ledger.password",
        "deploy/compose/local/secrets/bus.seed",
        "libs/estcore/.env",
        "libs/estcore/notes.txt",
        "libs/estcore/src/estcore/.env",
        "libs/estcore/src/estcore/__pycache__/x.pyc",
        "services/ca-signer/config.yaml",
        "services/ca-signer/passphrase",
        "services/ca-signer/ca.key",
        "services/ca-signer/src/ca_signer/ca.key",
        "services/ca-signer/src/ca_signer/ca.pem",
        "services/ca-signer/src/ca_signer/deep/er/signer.seed",
        "services/audit/src/audit/tests/test_x.py",
    ],
)
def test_secrets_settings_and_leftovers_are_not_sent(root: Path, tmp_path: Path, path: str) -> None:
    tree(tmp_path, path, "services/ca-signer/src/ca_signer/main.py")
    sent = build_context(tmp_path, (root / ".dockerignore").read_text())
    assert sent == ["services/ca-signer/src/ca_signer/main.py"]


@pytest.mark.parametrize(
    ("ignore", "sent"),
    [
        # An excluded folder is not entered …
        ("a", ["b/c/d", "b/e"]),
        ("*\n!b/*/d", []),
        ("*\n!**/d", []),
        # … unless an exception begins with its path, letter by letter.
        ("*\n!b", ["b/c/d", "b/e"]),
        ("*\n!b/c/d", ["b/c/d"]),
        ("*\n!/b/c/", ["b/c/d"]),
        # The last match decides, and a match of a parent folder counts.
        ("*\n!b\nb/c", ["b/e"]),
        ("*\n!b\n**/d", ["b/e"]),
        ("# all\n\n  *  \n! b/e", ["b/e"]),
        ("b\n!b\nb/?", ["a/x"]),
        ("**/[cd]\na", ["b/e"]),
    ],
)
def test_the_rules_are_those_of_docker(tmp_path: Path, ignore: str, sent: list[str]) -> None:
    tree(tmp_path, "a/x", "b/c/d", "b/e")
    assert build_context(tmp_path, ignore) == sent


def test_no_exception_contains_a_star(root: Path) -> None:
    patterns = read_patterns((root / ".dockerignore").read_text())
    assert [p.text for p in patterns if p.exception and set(p.text) & set("*?[")] == []
