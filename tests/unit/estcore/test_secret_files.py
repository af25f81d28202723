"""Files with secrets: who may read them, and that every setting that names one is known."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from audit.settings import Settings as AuditSettings
from ca_signer.settings import SignerSettings
from ca_signer.upstream.plugins.est import ESTOptions
from ca_signer.upstream.plugins.vault import VaultOptions
from ca_signer.upstream.settings import UpstreamSettings
from est_frontend.settings import FrontendSettings
from est_frontend_srp.settings import SRPFrontendSettings
from estclient.agent.host_settings import HostSettings
from estclient.agent.settings import AgentSettings
from estclient.operators.settings import OperatorSettings
from estcore.errors import ConfigurationError
from estcore.runtime.secret_files import (
    SECRET_SETTING,
    check_mode,
    check_settings,
    exposed,
    read_secret,
    read_secret_octets,
    secret_paths,
)
from renewal.settings import RenewalSettings

MODELS: tuple[type[BaseModel], ...] = (
    *(FrontendSettings, SRPFrontendSettings, SignerSettings, UpstreamSettings, RenewalSettings),
    *(AuditSettings, AgentSettings, HostSettings, OperatorSettings, ESTOptions, VaultOptions),
)

NOT_SECRET = {
    # certificates and trust anchors
    *("ca_file", "certificate_file", "chain_file", "cross_file", "trust_file", "anchors_file"),
    # public keys of those who sign messages; rules; a shared library
    *("senders_file", "policy_file", "profiles_file", "module"),
    # made by the service itself, for its owner alone
    *("spool_file", "state_folder", "store"),
    # written by the kubelet, which chooses the mode
    "service_account_file",
    # definitions, checked by their reader; outputs, written with a mode of their own
    *("definitions", "path", "certificate", "key", "ca"),
}


def path_fields(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, str]]:
    """Return every path setting below a model: dotted name and last part."""
    for name, field in model.model_fields.items():
        for kind in kinds(field.annotation):
            if kind is Path:
                yield f"{place}{name}", name
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from path_fields(kind, f"{place}{name}.")


def kinds(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in get_args(annotation):
        yield from kinds(inner)


FIELDS = sorted({(m, *f) for m in MODELS for f in path_fields(m)}, key=str)
SECRETS = [f for f in FIELDS if SECRET_SETTING.search(f[2])]


def test_every_path_of_every_settings_model_is_a_secret_or_known_to_be_none() -> None:
    """A new setting with a path must be put on one side: by its name, or in ``NOT_SECRET``."""
    unknown = {name for _, _, name in FIELDS if not SECRET_SETTING.search(name)} - NOT_SECRET
    assert unknown == set()
    assert not [name for name in NOT_SECRET if SECRET_SETTING.search(name)]
    assert len(SECRETS) > 30


@pytest.mark.parametrize(
    ("model", "place", "name"), SECRETS, ids=lambda v: getattr(v, "__name__", v)
)
def test_every_setting_with_a_secret_is_refused_when_others_may_read_the_file(
    tmp_path: Path, model: type[BaseModel], place: str, name: str
) -> None:
    path = tmp_path / name
    path.write_text("hidden")
    path.chmod(0o644)
    settings = with_value(model, place.split("."), path)
    assert (place, path) in [
        (p.replace("[0]", "").replace(".x", ""), f) for p, f in secret_paths(settings)
    ]
    with pytest.raises(ConfigurationError) as caught:
        check_settings(settings)
    assert caught.value.code == "secret.exposed"
    for part in (name, str(path), "0644", f"chmod 600 {path}"):
        assert part in caught.value.reason
    assert "hidden" not in caught.value.reason
    path.chmod(0o600)
    check_settings(settings)


def with_value(model: type[BaseModel], place: list[str], path: Path) -> BaseModel:
    """Return settings with nothing in them but one path, in the shape of the model."""
    name, *below = place
    if not below:
        return model.model_construct(None, **{name: path})
    annotation = model.model_fields[name].annotation
    inner = next(
        k
        for k in kinds(annotation)
        if isinstance(k, type) and issubclass(k, BaseModel) and below[0] in k.model_fields
    )
    value: Any = with_value(inner, below, path)
    outer = str(annotation)
    if outer.startswith("tuple["):
        value = (value,)
    elif outer.startswith("dict["):
        value = {"x": value}
    return model.model_construct(None, **{name: value})


def test_options_that_a_plug_in_reads_later_are_looked_at_as_well(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("hidden")
    path.chmod(0o604)

    class Options(BaseModel):
        options: dict[str, Any]

    for options in (
        {"token_file": str(path)},
        {"auth": {"approle": {"secret_id_file": str(path)}}},
    ):
        with pytest.raises(ConfigurationError, match="0604"):
            check_settings(Options(options=options))


@given(mode=st.integers(0, 0o777), owner=st.sampled_from([0, 7, 10_001]))
def test_only_the_owner_or_for_files_of_root_the_group_may_read(mode: int, owner: int) -> None:
    """What Kubernetes mounts for ``fsGroup`` is ``root:fsGroup``, 0440, read by another user."""
    for process in (0, 7, 10_001):
        allowed = 0o740 if owner == 0 and process != 0 else 0o700
        assert exposed(stat.S_IFREG | mode, owner, process) == bool(mode & ~allowed)
    assert not exposed(stat.S_IFIFO | mode, owner, 0)


@pytest.mark.parametrize("mode", [0o640, 0o660, 0o620, 0o604, 0o602, 0o644, 0o666, 0o777])
def test_every_reader_refuses_a_file_that_others_may_read_or_change(
    tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "secret"
    path.write_text("hidden\n")
    path.chmod(mode)
    for reader in (read_secret, read_secret_octets, check_mode):
        with pytest.raises(ConfigurationError, match=f"{mode:04o}") as caught:
            reader(path, "the thing")
        assert caught.value.code == "secret.exposed"
    path.chmod(0o400)
    assert read_secret(path, "the thing") == "hidden"
    check_mode(tmp_path / "missing", "reported by its reader")
