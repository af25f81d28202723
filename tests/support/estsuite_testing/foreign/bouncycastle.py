"""BouncyCastle's EST API (Java) from Maven Central, behind ``tests/interop/clients/bouncycastle``."""

from __future__ import annotations

import os
from pathlib import Path

from estsuite_testing.build_cache import built, fetched, run_build
from estsuite_testing.foreign.calls import Call, Result, run_client
from estsuite_testing.foreign.sources import CLIENTS
from estsuite_testing.foreign.toolchains import jdk

VERSION = "1.82"
_SHA256 = {
    "bcpkix-jdk18on": "bdc723e20834832ac6af136cb5b5ff05e43b71d4fa151cc6510d9212ee086e63",
    "bcprov-jdk18on": "14cde2fdfaa8890480a8e5b67aceef0c90f96682c1e23c133bafdc9e0b3255ce",
    "bcutil-jdk18on": "4420691958ad1c0ba275a6d6d8a6317adbdbdc9277055b6a72aa89c88cda8c7d",
}
_SOURCE = CLIENTS / "bouncycastle" / "Client.java"
# It lives a second: the quick compiler, and the class data of the JDK, are what counts.
_FAST = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"]
_TLS = {None: "TLS", "1.2": "TLSv1.2", "1.3": "TLSv1.3"}


class BouncyCastle:
    """The client of ``Client.java``, compiled once."""

    name = "BouncyCastle"

    def __init__(self) -> None:
        self._java, self._env = jdk()
        maven = "https://repo1.maven.org/maven2/org/bouncycastle"
        jars = [
            fetched(f"{maven}/{name}/{VERSION}/{name}-{VERSION}.jar", sha256)
            for name, sha256 in _SHA256.items()
        ]
        path = os.pathsep.join(map(str, jars))

        def compile_client(folder: Path) -> None:
            javac = [str(self._java / "javac"), "-cp", path, "-d", str(folder), str(_SOURCE)]
            run_build(javac, cwd=folder, env=self._env)

        classes = built("bouncycastle", [_SOURCE, *jars[:1]], compile_client)
        self._path = f"{classes}{os.pathsep}{path}"

    def run(self, call: Call) -> Result:
        """Carry out one call.

        Raises:
            Failed: BouncyCastle raised.
        """
        arguments = [a for a in call.arguments if not a.startswith("tls=")]
        java = [str(self._java / "java"), *_FAST, "-cp", self._path, "Client"]
        run_client([*java, *arguments, f"tls={_TLS[call.tls]}"], env=self._env)
        return call.result()
