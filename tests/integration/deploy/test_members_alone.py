"""Each workspace member, installed alone: every dependency it imports is declared."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest

from estsuite_testing.installing import Installation, run_installing

ROOT = Path(__file__).parents[3]
UV = Path(sys.executable).parent / "uv"
MEMBERS = {
    tomllib.loads(file.read_text())["project"]["name"]: next(
        path.parent.name for path in file.parent.glob("src/*/__init__.py")
    )
    for group in ("libs", "services")
    for file in sorted(ROOT.glob(f"{group}/*/pyproject.toml"))
}
"""Distribution to its package."""
EXTRAS = {
    "estsuite-audit": {"opentelemetry"},
    "estsuite-core": {"sqlalchemy", "asyncpg", "alembic"},
    "estsuite-client": {"sqlalchemy", "asyncpg", "alembic"},
    "estsuite-frontend": {"sqlalchemy", "asyncpg", "alembic"},
    "estsuite-frontend-srp": {"sqlalchemy", "asyncpg", "alembic"},
    "estsuite-signer": {"pkcs11", "pkilint", "aiohttp"},
}
"""What a module may lack because an extra installs it."""
IMPORTING = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
missing, count = {}, 0
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if ".migrations" in module.name or module.name.endswith("__main__"):
        continue
    count += 1
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as exc:
        missing[module.name] = exc.name.partition(".")[0]
print(json.dumps({"count": count, "missing": missing}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_declares_what_it_imports(
    context: Path, installation: Installation, tmp_path: Path, member: str
) -> None:
    done = run_installing(
        [UV, "sync", "--quiet", "--frozen", "--no-dev", "--no-editable", "--package", member],
        cwd=context,
        environment=installation.environment(),
    )
    assert done.returncode == 0, done.stderr
    python = installation.home / "bin" / "python"
    imported = installation.run([python, "-c", IMPORTING, MEMBERS[member]], tmp_path)
    assert imported.returncode == 0, imported.stderr
    report = json.loads(imported.stdout)
    undeclared = {
        module: name
        for module, name in report["missing"].items()
        if name not in EXTRAS.get(member, set())
    }
    assert undeclared == {}
    assert report["count"] > 5
