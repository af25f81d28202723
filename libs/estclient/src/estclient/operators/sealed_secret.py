"""A new enrollment secret: sealed by ca-signer for this command, opened here, shown once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from estclient.errors import AnswerInvalid
from estcore.errors import ConfigurationError, MalformedRequest
from estcore.pki.sealed_text import RecipientKey


@dataclass
class SealedSecret:
    """The key that an answer is sealed for, and where the secret goes: a file, or the result."""

    file: Path | None
    key: RecipientKey = field(default_factory=RecipientKey)

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> SealedSecret:
        """Turn the options of ``estctl secret create`` into the arguments of the command.

        Raises:
            ConfigurationError: the file exists, or cannot be written.
        """
        sealed = cls(arguments.pop("secret_file", None))
        if sealed.file is not None:
            _make(sealed.file)
        lifetime = arguments.pop("lifetime", None)
        if lifetime is not None:
            arguments["lifetime_s"] = int(lifetime.total_seconds())
        arguments["recipient"] = sealed.key.public
        return sealed

    def discard(self) -> None:
        """Remove the file: there is no secret for it."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def opened(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return the answer with the secret in place of the sealed one, or with its file.

        Raises:
            AnswerInvalid: it is not sealed for this command.
        """
        shown = {name: value for name, value in result.items() if name != "sealed"}
        try:
            secret = self.key.open(str(result.get("sealed", "")))
        except MalformedRequest as exc:
            raise AnswerInvalid(exc.reason, code=exc.code) from exc
        if self.file is None:
            return shown | {"secret": secret}
        self.file.write_text(secret + "\n", encoding="utf-8")
        return shown | {"secret_file": str(self.file)}


def _make(file: Path) -> None:
    """Make the file before the secret exists: a secret that cannot be written would be lost."""
    try:
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as exc:
        raise ConfigurationError(f"cannot make {file}: {exc.strerror}") from exc
