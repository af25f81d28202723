"""An OpenTelemetry Collector (Go), with the configuration of ``deploy/siem``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typing_extensions import override

from estdev.ports import free_port
from estsuite_testing.build_cache import built, run_build
from estsuite_testing.foreign.sources import CLIENTS
from estsuite_testing.foreign.toolchains import of_group, with_path
from estsuite_testing.siem import SIEM
from estsuite_testing.syslog_servers import SyslogServer

_MODULE = CLIENTS / "collector"
_RECIPE = [_MODULE / name for name in ("go.mod", "go.sum", "main.go")]
Log = dict[str, Any]


def command() -> Path:
    """Return the program; the first call builds it, which takes two minutes of CPU."""

    def build(folder: Path) -> None:
        go = of_group("go")
        module = folder.parent / "module"
        shutil.copytree(_MODULE, module)
        env = with_path(go.parent) | {"GOTOOLCHAIN": "local"}
        run_build([str(go), "build", "-o", f"{folder}/collector", "."], cwd=module, env=env)

    return built("collector", _RECIPE, build) / "collector"


class Collector(SyslogServer):
    """A Collector that takes OTLP over gRPC and HTTP, and syslog."""

    def __init__(self, folder: Path, certificates: SIEM) -> None:
        super().__init__(folder, certificates)
        self.grpc_port, self.http_port = free_port(), free_port()

    @override
    def command(self) -> tuple[list[str], dict[str, str]]:
        text = self.configured("otel-collector.yaml")
        for there, here in (("0.0.0.0:4317", self.grpc_port), ("0.0.0.0:4318", self.http_port)):
            text = text.replace(there, f"127.0.0.1:{here}")
        config = self.folder / "collector.yaml"
        config.write_text(text, encoding="utf-8")
        return [str(command()), "--config", str(config)], {"HOME": str(self.folder)}

    def logs(self) -> Iterator[Log]:
        """Yield each log record as the Collector understood it, with plain values."""
        for line in self.lines():
            for resource in line["resourceLogs"]:
                for scope in resource["scopeLogs"]:
                    for log in scope["logRecords"]:
                        yield {
                            "resource": _members(resource["resource"].get("attributes", [])),
                            "attributes": _members(log.get("attributes", [])),
                            "body": _value(log.get("body", {})),
                            "severity": log.get("severityText"),
                        }


def _members(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    return {pair["key"]: _value(pair["value"]) for pair in pairs}


def _value(value: dict[str, Any]) -> Any:
    for kind, inner in value.items():
        match kind:
            case "kvlistValue":
                return _members(inner.get("values", []))
            case "arrayValue":
                return [_value(one) for one in inner.get("values", [])]
            case "intValue":
                return int(inner)
            case _:
                return inner
    return None
