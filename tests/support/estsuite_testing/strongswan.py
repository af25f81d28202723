"""strongSwan's ``pki``, a foreign client, from Debian's packages without installing them.

Its library looks for plugins at a path fixed when it was built. A copy of the library gets a path
of ours, which must not be longer; everything else stays as Debian made it.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from estsuite_testing.debian import SYSTEM, debian_packages, environment

PACKAGES = (
    "strongswan-pki",
    "libstrongswan",
    "libstrongswan-standard-plugins",
    "libstrongswan-extra-plugins",
)
_BUILT_IN = b"/usr/lib/ipsec/plugins"
_PLUGINS = (
    "random drbg openssl x509 revocation constraints pubkey pkcs1 pkcs7 pkcs8 pkcs12 pem "
    "sha1 sha2 md5 gmp hmac kdf aes gcm nonce curve25519 curl"
)


@dataclass
class Pki:
    """The command, ready to run."""

    command: str
    env: dict[str, str]

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run ``pki`` with these arguments; what it says goes into the error."""
        done = subprocess.run(
            [self.command, *arguments], capture_output=True, env=self.env, timeout=60, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(f"pki {arguments[0]}: {done.stderr.decode()} {done.stdout!r}")
        return done

    @contextmanager
    def configured(self, settings: str) -> Iterator[Pki]:
        """The command with more settings, written as in strongswan.conf(5)."""
        if not settings:
            yield self
            return
        before = Path(self.env["STRONGSWAN_CONF"])
        with tempfile.NamedTemporaryFile("w", suffix=".conf", dir=before.parent) as file:
            file.write(f"{before.read_text()}{settings}\n")
            file.flush()
            yield Pki(self.command, self.env | {"STRONGSWAN_CONF": file.name})


@contextmanager
def strongswan_pki() -> Iterator[Pki]:
    """The command for as long as the context lasts."""
    root = debian_packages(*PACKAGES)
    folder = Path(tempfile.mkdtemp(prefix="sw-", dir="/tmp"))
    try:
        env = environment(root)
        if root != SYSTEM:
            _relocate(root, folder)
            env["LD_LIBRARY_PATH"] = f"{folder}:{env['LD_LIBRARY_PATH']}"
        config = folder / "strongswan.conf"
        config.write_text(f"pki {{\n  load = {_PLUGINS}\n}}\n")
        env["STRONGSWAN_CONF"] = str(config)
        command = shutil.which("pki", path=env["PATH"])
        assert command is not None
        yield Pki(command, env)
    finally:
        shutil.rmtree(folder)


def _relocate(root: Path, folder: Path) -> None:
    ours = folder / "p"
    path = str(ours).encode()
    assert len(path) <= len(_BUILT_IN)
    ours.symlink_to(root / "usr/lib/ipsec/plugins")
    library = (root / "usr/lib/ipsec/libstrongswan.so.0").read_bytes()
    assert library.count(_BUILT_IN) == 1
    patched = library.replace(_BUILT_IN, path.ljust(len(_BUILT_IN), b"\0"))
    (folder / "libstrongswan.so.0").write_bytes(patched)
