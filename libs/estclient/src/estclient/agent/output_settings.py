"""Settings of the files that a service reads its credential from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from estcore.pki.profile import StrictModel

Mode = Annotated[str, Field(pattern=r"^0?[0-7]{3}$")]
Account = Annotated[str, Field(pattern=r"^([a-z_][a-z0-9_.-]{0,31}|[0-9]{1,10})$")]
KEYSTORES = frozenset({"pkcs12", "jks", "pkcs12-truststore"})
WITH_KEY = frozenset({"combined-pem", "pkcs12", "jks"})
"""Formats with the key itself; in a `pem` output a key in a token is a reference."""
_OTHERS = 0o007


class OutputSettings(StrictModel):
    """One credential, or its trust anchors, in the form that a service reads."""

    format: Literal["pem", "combined-pem", "pkcs12", "jks", "pkcs12-truststore"] = Field(
        description="`pem`: one file each; `combined-pem`: certificate, chain and key in one file "
        "(HAProxy); `pkcs12`, `jks`: a key store; `pkcs12-truststore`: the CA certificates for Java"
    )
    path: Path | None = Field(
        default=None, description="the file of every format but `pem`; absolute"
    )
    certificate: Path | None = Field(default=None, description="`pem`: file with the certificate")
    key: Path | None = Field(default=None, description="`pem`: file with the private key")
    ca: Path | None = Field(default=None, description="`pem`: file with the CA certificates")
    chain: bool = Field(default=True, description="the intermediates follow the certificate")
    root: bool = Field(default=False, description="the root certificate ends the chain")
    password_file: Path | None = Field(
        default=None, description="file with the password of a key store"
    )
    alias: str = Field(
        default="est", pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="name in the key store"
    )
    owner: Account | None = Field(
        default=None, description="user that owns the files, by name or number; needs root"
    )
    group: Account | None = Field(
        default=None, description="group of the files, by name or number; one of the agent's own"
    )
    mode: Mode = Field(default="0600", description="mode of files with a key, octal")
    previous: bool = Field(
        default=False,
        description="the credential before this one lies beside it as `<file>.previous` until it "
        "expires",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.format == "pem":
            if self.path is not None or self.certificate is None or self.key is None:
                raise ValueError("pem takes certificate, key and perhaps ca, and no path")
        elif self.path is None or any((self.certificate, self.key, self.ca)):
            raise ValueError(f"{self.format} takes path, and neither certificate, key nor ca")
        if (self.format in KEYSTORES) != (self.password_file is not None):
            raise ValueError("a key store takes password_file, PEM takes none")
        for file in self.files:
            if not file.is_absolute() or ".." in file.parts:
                raise ValueError(f"{file} is not an absolute path without ..")
        if len(set(self.files)) != len(self.files):
            raise ValueError("two files of an output have one path")
        if self.mode_bits & _OTHERS:
            raise ValueError("mode: a key is not for everybody; use a group, and 0640")
        return self

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of the output, without those of the credential before."""
        paths = (self.path, self.certificate, self.key, self.ca)
        return tuple(p for p in paths if p is not None)

    @property
    def mode_bits(self) -> int:
        """The mode as a number."""
        return int(self.mode, 8)

    @property
    def public_mode_bits(self) -> int:
        """The mode of files without a key: readable wherever the mode says so, and by all."""
        return self.mode_bits & 0o666 | 0o444


def is_account_number(account: str) -> bool:
    """Return whether an owner or group is given by its number."""
    return re.fullmatch(r"[0-9]+", account) is not None
