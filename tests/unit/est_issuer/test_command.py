"""The command line: what cannot be used is one line with a code."""

from __future__ import annotations

from pathlib import Path

import pytest

from est_issuer.main import main


@pytest.mark.parametrize(
    "kubeconfig",
    [
        "",
        "hello",
        "[1, 2]",
        "{",
        "clusters: 7\nusers: 8\ncontexts: 9\ncurrent-context: a",
        "a: \x00",
    ],
)
def test_what_is_no_kubeconfig_is_one_line(
    kubeconfig: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kubeconfig").write_text(kubeconfig)
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"kubeconfig_file: {tmp_path / 'kubeconfig'}\n")
    assert main(["run", "--config", str(settings)]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith(f"est-issuer: cannot use {tmp_path}/kubeconfig")
    assert last.endswith("[configuration.invalid]")


def test_outside_a_pod_a_kubeconfig_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("{}\n")
    assert main(["run", "--config", str(settings)]) == 2
    assert "cannot use the service account of the pod" in capsys.readouterr().err


def test_settings_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("lease: {duration_s: 1}\n")
    assert main(["check-config", "--config", str(settings)]) == 2
    assert "lease.duration_s" in capsys.readouterr().err
    settings.write_text("workers: 2\n")
    assert main(["check-config", "--config", str(settings)]) == 0
