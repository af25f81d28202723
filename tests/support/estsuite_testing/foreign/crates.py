"""Two clients of crates.io, usg-est-client and est-ca, behind ``tests/interop/clients/rust``."""

from __future__ import annotations

import shutil
from pathlib import Path

from estsuite_testing.build_cache import built, run_build
from estsuite_testing.debian import SYSTEM, debian_packages
from estsuite_testing.foreign.calls import Call, Result, run_client
from estsuite_testing.foreign.sources import CLIENTS
from estsuite_testing.foreign.toolchains import rust

_WORKSPACE = CLIENTS / "rust"
_RECIPE = sorted(
    [*_WORKSPACE.glob("**/Cargo.toml"), *_WORKSPACE.glob("**/main.rs"), _WORKSPACE / "Cargo.lock"]
)


def commands() -> Path:
    """Return the folder with both programs; the first call builds them, which takes minutes."""

    def build(folder: Path) -> None:
        workspace = folder.parent / "workspace"
        shutil.copytree(_WORKSPACE, workspace)
        env = rust() | _openssl()
        env["CARGO_TARGET_DIR"] = str(folder.parent / "target")
        cargo = shutil.which("cargo", path=env["PATH"])
        assert cargo is not None
        run_build([cargo, "build", "--locked", "--quiet"], cwd=workspace, env=env)
        for name in ("usg-client", "est-ca-client"):
            shutil.copy(folder.parent / "target" / "debug" / name, folder / name)

    return built("crates", _RECIPE, build)


def _openssl() -> dict[str, str]:
    """Where native-tls finds OpenSSL's headers: the machine's, else Debian's package."""
    root = debian_packages("libssl-dev")
    if root == SYSTEM:
        return {}
    library = next(root.glob("usr/lib/*/libssl.so")).parent
    # Static: the shared library that the package links to is in another package.
    return {
        "OPENSSL_INCLUDE_DIR": str(root / "usr/include"),
        "OPENSSL_LIB_DIR": str(library),
        "OPENSSL_STATIC": "1",
    }


class USG:
    """usg-est-client: TLS 1.3 only, no Digest."""

    name = "usg-est-client"

    def __init__(self) -> None:
        self._command = commands() / "usg-client"

    def run(self, call: Call) -> Result:
        """Carry out one call.

        Raises:
            Failed: it failed.
        """
        run_client([str(self._command), *call.arguments])
        return call.result()


class ESTCA:
    """The client of est-ca: no labels, csrattrs or serverkeygen; the first certificate only."""

    name = "est-ca"

    def __init__(self) -> None:
        self._command = commands() / "est-ca-client"

    def run(self, call: Call) -> Result:
        """Carry out one call.

        Raises:
            Failed: it failed.
        """
        run_client([str(self._command), *call.arguments])
        return call.result()
