"""Groups of front ends: what ``estctl policy explain`` says is what ca-signer decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from estclient.cli import main
from estcore.errors import ConfigurationError, RequestRejected
from estcore.pki.csr import parse_csr
from estcore.policy.explain import Question, explain
from estcore.policy.groups import load_groups
from estsuite_testing.decision_case import DecisionCase, csr

names = st.sampled_from(["services", "spare", "another"])
profiles = st.sampled_from(["service-mtls", "workload", "server-only", "ra"])
groups = st.fixed_dictionaries(
    {
        "labels": st.lists(names, min_size=1, unique=True),
        "profiles": st.lists(profiles, min_size=1, unique=True),
    }
)


@given(
    group=groups,
    name=st.sampled_from(["default", "other"]),
    rule=st.sampled_from([{}, {"profiles": ["workload"]}, {"labels": ["spare"]}]),
    common_name=st.sampled_from(["web-1", "elsewhere"]),
)
def test_what_is_explained_is_what_is_decided(
    group: dict[str, Any], name: str, rule: dict[str, Any], common_name: str
) -> None:
    """The same reason and the same code; a step may be refused by the front end already."""
    case = DecisionCase(request=csr(common_name), group=group, rule=rule, message={"group": name})
    context = case.context()
    question = Question("secret", "web", "services", csr=parse_csr(case.request), group=name)
    explained = explain(context.policy, question, context.profiles, context.groups)
    try:
        case.decide()
    except RequestRejected as exc:
        assert not explained.allowed
        if exc.code.startswith("frontend.") and explained.steps[-1].endswith(".subject]"):
            return  # the front end checks names before it asks ca-signer
        if "[policy." not in explained.steps[-1]:
            assert explained.steps[-1] == f"refused: {exc.reason} [{exc.code}]"
    else:
        assert explained.allowed
        assert explained.steps[-1] == "allowed"


@pytest.mark.parametrize(
    ("group", "code"),
    [({"labels": ["spare"]}, "frontend.label"), ({"profiles": ["workload"]}, "frontend.profile")],
)
def test_a_refusal_by_the_group_has_the_words_of_the_server(
    group: dict[str, Any], code: str
) -> None:
    case = DecisionCase(group=group)
    context = case.context()
    question = Question("secret", "web", "services", csr=parse_csr(case.request))
    last = explain(context.policy, question, context.profiles, context.groups).steps[-1]
    with pytest.raises(RequestRejected) as caught:
        case.decide()
    assert caught.value.code == code
    assert last == f"refused: {caught.value.reason} [{code}]"


def test_without_groups_the_explanation_says_so() -> None:
    context = DecisionCase().context()
    explained = explain(context.policy, Question("secret", "web", "services"), context.profiles)
    assert "groups of ca-signer: not looked at, their settings are not given" in explained.steps
    assert explained.allowed


POLICY = {
    "default_label": "services",
    "labels": {
        "services": {
            "issuer": "issuing",
            "profiles": ["service-mtls"],
            "authentication": ["secret"],
        }
    },
    "rules": [
        {
            "name": "web",
            "principal": {"secret": "web"},
            "owner": {"tenant": "clinic", "service": "web"},
            "labels": ["services"],
            "profiles": ["service-mtls"],
            "names": {"common_names": ["web"]},
        }
    ],
}


@pytest.mark.parametrize(
    ("caps", "options", "code", "line"),
    [
        ({"labels": ["services"], "profiles": ["service-mtls"]}, [], 0, "allowed"),
        ({"labels": ["services"], "profiles": ["ra"]}, [], 1, "[frontend.profile]"),
        (
            {"labels": ["services"], "profiles": ["service-mtls"]},
            ["--group", "other"],
            1,
            "refused: group other may not use label services [frontend.label]",
        ),
        ({"labels": ["unknown"], "profiles": ["ra"]}, [], 2, "unknown labels"),
        ({"labels": ["services"], "profiles": ["operator"]}, [], 2, "operator"),
        (None, [], 2, "no groups"),
    ],
)
def test_the_command_reads_the_groups_of_ca_signer(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caps: dict[str, Any] | None,
    options: list[str],
    code: int,
    line: str,
) -> None:
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(POLICY))
    # Its other settings are not looked at, so a copy without its secrets is enough.
    settings = {"database": {"url": 1}} | ({"groups": {"default": caps}} if caps else {})
    (tmp_path / "ca-signer.yaml").write_text(yaml.safe_dump(settings))
    words = ["--policy", str(tmp_path / "policy.yaml"), "--secret", "web"]
    words += ["--signer-config", str(tmp_path / "ca-signer.yaml"), *options]
    assert main(["policy", "explain", *words]) == code
    captured = capsys.readouterr()
    assert line in (captured.out + captured.err).splitlines()[-1]


@given(st.one_of(st.none(), st.text(), st.lists(st.integers()), st.dictionaries(st.text(), names)))
def test_any_content_is_groups_or_an_error_of_one_line(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    file = tmp_path_factory.mktemp("groups") / "ca-signer.yaml"
    file.write_text(yaml.safe_dump({"groups": value}))
    with pytest.raises(ConfigurationError) as caught:
        load_groups(file)
    assert "\n" not in caught.value.reason
