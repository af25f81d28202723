"""Who works at a console, where the operating system has no name for the user."""

from __future__ import annotations

import os

import pytest

from ca_signer.operators.console import user_name


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    # As getuid of a container's numeric user: pwd has no entry for it.
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert user_name() == "uid-54321"


def test_a_user_with_a_name_is_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "alice")
    assert user_name() == "alice"
