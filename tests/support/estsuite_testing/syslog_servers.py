"""rsyslog and syslog-ng of Debian as receivers, with the configurations of ``deploy/siem``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

from typing_extensions import override

from estdev.ports import free_port
from estsuite_testing.debian import debian_packages, environment
from estsuite_testing.siem import SIEM

CONFIGURATIONS = Path(__file__).parents[3] / "deploy" / "siem"


class SyslogServer:
    """One daemon in the foreground; its files are in a folder of its own."""

    def __init__(self, folder: Path, certificates: SIEM) -> None:
        folder.mkdir()
        self.folder, self.certificates = folder, certificates
        self.port, self.relp_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def configured(self, name: str) -> str:
        """Return a configuration with this server's paths and ports."""
        text = (CONFIGURATIONS / name).read_text(encoding="utf-8")
        places = {
            "/etc/estsuite/siem/ca.pem": self.certificates.ca_file,
            "/etc/estsuite/siem/server.pem": self.certificates.certificate_file,
            "/etc/estsuite/siem/server.key": self.certificates.key_file,
            "/var/log/estsuite": self.folder,
            "6514": self.port,
            "2514": self.relp_port,
        }
        # In one pass: a port may have the digits of another port in it, and so may a folder.
        pattern = "|".join(re.escape(place) for place in places)
        return re.sub(pattern, lambda found: str(places[found[0]]), text)

    async def start(self) -> None:
        command, surroundings = await asyncio.to_thread(self.command)
        log = (self.folder / "daemon.log").open("ab")
        self._process = subprocess.Popen(
            command, env=surroundings, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        log.close()
        try:
            await self._until_listening(self._process)
        except BaseException:  # Cleanup, then raised again: it must not outlive the test.
            await self.stop(kill=True)
            raise

    async def _until_listening(self, process: subprocess.Popen[bytes]) -> None:
        for _ in range(1200):
            if process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"it does not listen: {(self.folder / 'daemon.log').read_text()}")

    def command(self) -> tuple[list[str], dict[str, str]]:
        raise NotImplementedError

    async def stop(self, *, kill: bool = False) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            await asyncio.to_thread(self._process.wait, 20)
            self._process = None

    def lines(self) -> list[dict[str, Any]]:
        """The records as the receiver read them."""
        file = self.folder / "audit.jsonl"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        complete = text[: text.rfind("\n") + 1].splitlines()
        return [found for line in complete if (found := _record(line)) is not None]

    def unparsed(self) -> str:
        file = self.folder / "unparsed.log"
        return file.read_text(encoding="utf-8") if file.exists() else ""


class Rsyslog(SyslogServer):
    """rsyslog with imtcp, imrelp and mmjsonparse."""

    @override
    def command(self) -> tuple[list[str], dict[str, str]]:
        root = debian_packages("rsyslog", "rsyslog-openssl", "rsyslog-relp")
        config = self.folder / "rsyslog.conf"
        state = f'global(workDirectory="{self.folder}")\n'
        config.write_text(state + self.configured("rsyslog.conf"))
        modules = next((root / "usr/lib").glob("*/rsyslog"))
        binary = str(root / "usr/sbin/rsyslogd")
        command = [binary, "-n", "-f", str(config), "-i", str(self.folder / "pid")]
        return [*command, "-M", str(modules)], environment(root)


class SyslogNG(SyslogServer):
    """syslog-ng with its JSON parser."""

    @override
    def command(self) -> tuple[list[str], dict[str, str]]:
        root = debian_packages("syslog-ng-core")
        config = self.folder / "syslog-ng.conf"
        config.write_text(self.configured("syslog-ng.conf"))
        binary = str(root / "usr/sbin/syslog-ng")
        files = [
            "--persist-file",
            str(self.folder / "persist"),
            "--pidfile",
            str(self.folder / "pid"),
        ]
        control = ["--control", str(self.folder / "ctl")]
        modules = next((root / "usr/lib").glob("**/libaffile.so")).parent
        command = [binary, "--foreground", "--no-caps", "--cfgfile", str(config), *files, *control]
        return [*command, "--module-path", str(modules)], environment(root)


def _record(line: str) -> dict[str, Any] | None:
    """The record on a line; a receiver that was killed may have left half of another before it."""
    for start in (found.start() for found in re.finditer(r"\{", line)):
        with contextlib.suppress(json.JSONDecodeError):
            record: dict[str, Any] = json.loads(line[start:])
            return record
    return None
