"""Files with secrets that are read again while the front end runs: each reader looks at the mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from est_frontend.auth.assembly import digest_key
from est_frontend.auth.password_file import PasswordFile
from est_frontend.enrollment.server_keygen import load_secrets
from est_frontend.tls.engine import EngineContext
from estcore.errors import ConfigurationError
from estsuite_testing.token_issuer import self_signed


def _tls(path: Path) -> object:
    certificate = path.with_suffix(".pem")
    self_signed(certificate, path)
    return EngineContext(certificate, path)


def _digest(path: Path) -> object:
    return digest_key(cast("Any", SimpleNamespace(digest=SimpleNamespace(key_file=path))))


READERS: list[tuple[str, Callable[[Path], object]]] = [
    ("users: {}", PasswordFile.load),
    ("{}", load_secrets),
    ("k" * 32, _digest),
    ("made by the reader", _tls),
]


@pytest.mark.parametrize(("content", "read"), READERS, ids=["users", "keygen", "digest", "tls"])
@pytest.mark.parametrize("mode", [0o604, 0o640, 0o602])
def test_a_changed_file_that_others_may_read_or_change_is_refused(
    tmp_path: Path, content: str, read: Callable[[Path], object], mode: int
) -> None:
    path = tmp_path / "secret"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(ConfigurationError) as caught:
        read(path)
    assert caught.value.code == "secret.exposed"
    path.chmod(0o600)
    read(path)
