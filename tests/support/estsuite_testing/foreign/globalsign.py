"""GlobalSign's EST client and server (Go), from the Go module proxy, pinned by go.sum."""

from __future__ import annotations

import shutil
from pathlib import Path

from cryptography import x509

from estsuite_testing.build_cache import built, run_build
from estsuite_testing.foreign.calls import Call, Result, run_client
from estsuite_testing.foreign.sources import CLIENTS
from estsuite_testing.foreign.toolchains import of_group, with_path

_MODULE = CLIENTS / "go"
_RECIPE = [_MODULE / "go.mod", _MODULE / "go.sum"]
_PACKAGES = [f"github.com/globalsign/est/cmd/{name}" for name in ("estclient", "estserver")]


def commands() -> Path:
    """Return the folder with ``estclient`` and ``estserver``; the first call builds them."""

    def build(folder: Path) -> None:
        go = of_group("go")
        module = folder.parent / "module"
        shutil.copytree(_MODULE, module)
        env = with_path(go.parent) | {"GOTOOLCHAIN": "local"}
        run_build([str(go), "build", "-o", f"{folder}/", *_PACKAGES], cwd=module, env=env)

    return built("globalsign", _RECIPE, build)


class GlobalSign:
    """``estclient``; it does Basic, and no Digest."""

    name = "GlobalSign estclient"

    def __init__(self) -> None:
        self._command = commands() / "estclient"

    def run(self, call: Call) -> Result:
        """Carry out one call.

        Raises:
            Failed: it failed.
        """
        verb = {"simpleenroll": "enroll", "simplereenroll": "reenroll"}.get(
            call.operation, call.operation
        )
        out, key = call.folder / "out.pem", call.folder / "out.key"
        command = [str(self._command), verb, "-server", f"localhost:{call.port}"]
        command += ["-explicit", str(call.root)]
        if call.operation != "csrattrs":
            command += ["-out", str(out)]
        if call.operation == "serverkeygen":
            command += ["-keyout", str(key)]
        if call.label is not None:
            command += ["-aps", call.label]
        if call.csr is not None:
            command += ["-csr", str(call.csr)]
        if call.user is not None:
            command += ["-user", call.user, "-pass", call.password]
        if call.certificate is not None:
            command += ["-certs", str(call.certificate), "-key", str(call.key)]
        said = run_client(command)
        if call.operation == "csrattrs":
            return Result(attributes=said.decode())
        generated = key.read_bytes() if key.exists() else None
        return Result(x509.load_pem_x509_certificates(out.read_bytes()), generated_key=generated)
