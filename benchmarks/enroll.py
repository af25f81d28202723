"""Enrollments per second and CPU seconds per 1,000 on the real path, everything counted.

Starts the whole suite (PostgreSQL, NATS, four services, ledger and audit on), enrolls one
client and lets ``benchmarks/loadgen`` enroll distinct keys over mutual TLS: new connections
and keep-alive, several concurrencies. CPU is that of all processes: servers and services, for
the run and a settling time after it. ``openssl speed ecdsap256`` runs in the same minute, so
that figures of different machines can be compared: the targets are stated for a machine that
verifies 12,000 signatures a second.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from estcore.runtime import command_line
from estcore.runtime.command_line import CONTEXT, PATH
from estdev.layout import Layout, Ports
from estdev.local import LocalSuite
from estdev.ports import free_port

HERE = Path(__file__).parent
TARGET_VERIFY = 12_000
TARGETS = {"new": 3.5, "keepalive": 1.6}


def verify_per_second() -> float:
    """Return P-256 verifications per second by the machine's openssl."""
    done = subprocess.run(
        ["openssl", "speed", "-seconds", "2", "ecdsap256"],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(re.findall(r"([\d.]+)\s*$", done.stdout.strip())[0])


def build(name: str, folder: Path) -> Path:
    """Compile a Go program of this folder; returns the binary."""
    out = folder / name
    go = shutil.which("go") or str(Path(sys.executable).parent / "go")
    subprocess.run([go, "build", "-o", str(out), "."], cwd=HERE / name, check=True)
    return out


def build_loadgen(folder: Path) -> Path:
    """Compile the load generator; returns the binary."""
    return build("loadgen", folder)


def ticks(pid: int) -> float:
    """Return CPU seconds of a process and its descendants, reaped children included."""
    total = 0.0
    pids, seen = [pid], set()
    while pids:
        one = pids.pop()
        if one in seen:
            continue
        seen.add(one)
        try:
            text = Path(f"/proc/{one}/stat").read_text()
            for task in Path(f"/proc/{one}/task").iterdir():
                pids += [int(p) for p in (task / "children").read_text().split()]
        except OSError:
            continue
        fields = text[text.rindex(")") + 2 :].split()
        total += sum(int(fields[i]) for i in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")
    return total


class Bench:
    """A suite, a client certificate and a load generator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ports = Ports.free()
        ports.choose()
        self.layout = Layout(folder / "suite", ports)
        self.layout.overrides = {
            s: {"telemetry": {"log_level": "INFO"}} for s in ("est-frontend", "ca-signer")
        }
        self.suite = LocalSuite(self.layout)

    async def start(self, frontends: int, signers: int) -> None:
        self.layout.prepare()
        shutil.copy(HERE / "policy.yaml", self.layout.config / "policy.yaml")
        await self.suite.start()
        for n in range(1, frontends):
            await self.suite.start_service("est-frontend", f"est-frontend-{n}", wait=True)
        for n in range(1, signers):
            await self.suite.start_service("ca-signer", f"ca-signer-{n}", wait=True)
        await self._client()

    async def _client(self) -> None:
        secret = await self.suite.command(
            "ca-signer", "secret", "create", "--id", "bench",
            "--config", str(self.layout.config_file("ca-signer")),
        )  # fmt: skip
        folder = self.folder
        run = subprocess.run
        run(["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-keyout", str(folder / "c.key"), "-subj", "/CN=bench-client", "-outform", "DER",
             "-out", str(folder / "c.csr")], check=True, capture_output=True)  # fmt: skip
        run(
            ["openssl", "base64", "-in", str(folder / "c.csr"), "-out", str(folder / "c.b64")],
            check=True,
        )
        await asyncio.sleep(0.5)
        run(["curl", "-sS", "-f", "--cacert", str(self.layout.root_file), "-u", f"bench:{secret.strip()}",
             "-H", "Content-Type: application/pkcs10", "--data-binary", f"@{folder / 'c.b64'}",
             "-o", str(folder / "c.p7"), self.suite.url + "/simpleenroll"], check=True)  # fmt: skip
        p7 = run(
            ["openssl", "base64", "-d", "-A", "-in", str(folder / "c.p7")],
            check=True,
            capture_output=True,
        )
        pem = run(["openssl", "pkcs7", "-inform", "DER", "-print_certs"], input=p7.stdout, check=True,
                  capture_output=True)  # fmt: skip
        (folder / "c.pem").write_bytes(pem.stdout)

    def cpu(self) -> dict[str, float]:
        """CPU seconds by process name."""
        found = {name: ticks(r.process.pid) for name, r in self.suite.services.items()}
        found["postgres"] = ticks(self.layout.postgres.pid)
        found["nats"] = ticks(self.layout.nats.pid)
        return found

    async def reference(
        self, binary: Path, loadgen: Path, csrs: Path, mode: str, c: int, n: int
    ) -> float:
        """CPU-ms per enrollment of the Go server with a mock CA, run alone in the same minute."""
        port = free_port()
        server = self.layout.ca / "server"
        bundle = self.folder / "clients.pem"
        bundle.write_bytes(
            b"".join((self.layout.ca / f).read_bytes() for f in ("root.pem", "issuing.pem"))
        )
        process = await asyncio.create_subprocess_exec(
            str(binary), "-addr", f"127.0.0.1:{port}", "-cert", str(server / "server.pem"),
            "-key", str(server / "server.key"), "-ca", str(bundle),
        )  # fmt: skip
        await asyncio.sleep(0.5)
        try:
            before = ticks(process.pid)
            result = await self._load(loadgen, csrs, port, 0, mode, c, n)
            return (ticks(process.pid) - before) * 1000 / (result["ok"] + 20)
        finally:
            process.kill()
            await process.wait()

    async def _load(
        self, loadgen: Path, csrs: Path, port: int, start: int, mode: str, c: int, n: int
    ) -> dict:
        process = await asyncio.create_subprocess_exec(
            str(loadgen), "run", "-addr", f"127.0.0.1:{port}", "-sni", "localhost",
            "-ca", str(self.layout.root_file), "-cert", str(self.folder / "c.pem"),
            "-key", str(self.folder / "c.key"), "-csrs", str(csrs), "-start", str(start),
            "-mode", mode, "-c", str(c), "-n", str(n), "-json", stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        return json.loads(out)

    async def measure(
        self, loadgen: Path, csrs: Path, start: int, mode: str, c: int, n: int
    ) -> dict:
        before = self.cpu()
        result = await self._load(loadgen, csrs, self.layout.ports.est, start, mode, c, n)
        await asyncio.sleep(2)  # audit and renewal catch up; their work counts
        after = self.cpu()
        done = result["ok"] + 20  # warm-up enrollments cost as well
        result["stages"] = {k: round((after[k] - before[k]) * 1000 / done, 3) for k in after}
        result["cpu_ms"] = round(sum(result["stages"].values()), 3)
        return result


@click.command("enroll", help="Measure enrollments over mutual TLS.", context_settings=CONTEXT)
@click.option("-n", "count", type=int, default=2000, help="Enrollments in each row.")
@click.option(
    "-c", "concurrencies", type=int, multiple=True, default=(1, 16, 64), help="At once; repeatable."
)
@click.option("--frontends", type=int, default=1, help="Processes of est-frontend.")
@click.option("--signers", type=int, default=1, help="Processes of ca-signer.")
@click.option("--json", "json_file", type=PATH, help="File for the figures.")
def enroll(
    count: int,
    concurrencies: tuple[int, ...],
    frontends: int,
    signers: int,
    json_file: Path | None,
) -> None:
    results = asyncio.run(measured(count, concurrencies, frontends, signers))
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=1))


async def measured(
    count: int, concurrencies: tuple[int, ...], frontends: int, signers: int
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="estbench-") as name:
        folder = Path(name)
        loadgen, reference = build_loadgen(folder), build("reference", folder)
        runs = len(concurrencies) * 2
        csrs = folder / "csrs.txt"
        total = runs * (count + 50)
        subprocess.run([str(loadgen), "gencsr", "-n", str(total), "-out", str(csrs)], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        bench = Bench(folder)
        results = []
        try:
            await bench.start(frontends, signers)
            start = 0
            for c in concurrencies:
                for mode in ("new", "keepalive"):
                    speed = verify_per_second()
                    result = await bench.measure(loadgen, csrs, start, mode, c, count)
                    start += count + 50
                    target = TARGETS[mode] * TARGET_VERIFY / speed
                    go_ms = await bench.reference(reference, loadgen, csrs, mode, c, count)
                    result.update(
                        verify_per_s=speed,
                        target_cpu_ms=round(target, 2),
                        go_cpu_ms=round(go_ms, 3),
                    )
                    results.append(result)
                    print(
                        f"{mode:9} c={c:<3} {result['per_s']:7.1f}/s p50 {result['ms_p50']:6.1f} "
                        f"p99 {result['ms_p99']:7.1f} ms  errors {result['errors']}  "
                        f"CPU {result['cpu_ms']:.2f} ms (target {target:.2f} at {speed:.0f} verify/s; "
                        f"Go mock {go_ms:.2f}, ratio {result['cpu_ms'] / go_ms:.1f})  "
                        f"{result['stages']}",
                        flush=True,
                    )
        finally:
            await bench.suite.stop()
            shutil.rmtree(bench.layout.postgres.home, ignore_errors=True)
        return results


if __name__ == "__main__":
    sys.exit(command_line.run(enroll, "enroll"))
