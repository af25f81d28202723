"""The examples of agents in pods keep the rules, and each rule notices what it is for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from estdeploy import example_rules, manifests

Documents = list[dict[str, Any]]
SIDECAR, DAEMON = "examples/agent-sidecar", "examples/agent-daemonset"


@pytest.fixture(scope="module")
def rendered(root: Path) -> dict[str, Documents]:
    return {
        name: manifests.render(root / "deploy" / "k8s" / name) for name in example_rules.EXCEPTIONS
    }


def named(documents: Documents, kind: str) -> dict[str, Any]:
    return next(d for d in documents if d["kind"] == kind)


def pod(documents: Documents) -> dict[str, Any]:
    (workload,) = (d for d in documents if d["kind"] in {"Deployment", "DaemonSet"})
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def agent(documents: Documents) -> dict[str, Any]:
    spec = pod(documents)
    found: dict[str, Any] = next(
        c for c in [*spec["initContainers"], *spec["containers"]] if c["name"] == "est-agent"
    )
    return found


def volume(documents: Documents, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(v for v in pod(documents)["volumes"] if v["name"] == name)
    return found


def data(documents: Documents) -> dict[str, str]:
    found: dict[str, str] = next(
        d["data"] for d in documents if d["kind"] == "ConfigMap" and "agent.yaml" in d["data"]
    )
    return found


def change_definition(documents: Documents, old: str, new: str) -> None:
    assert old in data(documents)["definition.yaml"]
    data(documents)["definition.yaml"] = data(documents)["definition.yaml"].replace(old, new)


BREAKS: list[tuple[str, str, Callable[[Documents], object], str]] = [
    (
        "a sidecar that ends",
        SIDECAR,
        lambda d: agent(d).pop("restartPolicy"),
        "is no native sidecar",
    ),
    (
        "an application that starts before its certificate",
        SIDECAR,
        lambda d: agent(d)["startupProbe"]["httpGet"].update(path="/healthz"),
        "startupProbe does not ask /readyz",
    ),
    (
        "an admin port on loopback",
        SIDECAR,
        lambda d: data(d).update(
            {"agent.yaml": data(d)["agent.yaml"].replace("0.0.0.0", "127.0.0.1")}  # noqa: S104 - text
        ),
        "the admin port is not on",
    ),
    (
        "a key on the disk of the node",
        SIDECAR,
        lambda d: volume(d, "est")["emptyDir"].pop("medium"),
        "volume est is not in memory",
    ),
    (
        "an application that may write the agent's files",
        SIDECAR,
        lambda d: next(
            m for m in pod(d)["containers"][0]["volumeMounts"] if m["name"] == "est"
        ).pop("readOnly"),
        "container orders: may write est of the agent",
    ),
    (
        "a token for the API server",
        SIDECAR,
        lambda d: pod(d).update(automountServiceAccountToken=True),
        "automountServiceAccountToken",
    ),
    (
        "a token that nothing mounts",
        SIDECAR,
        lambda d: change_definition(d, "/run/secrets/est/token", "/run/secrets/other/token"),
        "nothing mounts /run/secrets/other/token",
    ),
    (
        "a definition with an unknown setting",
        SIDECAR,
        lambda d: change_definition(d, "presence:", "presences:"),
        "presences",
    ),
    (
        "egress to anywhere",
        SIDECAR,
        lambda d: named(d, "NetworkPolicy")["spec"]["egress"].append({}),
        "egress is not DNS and EST alone",
    ),
    (
        "a namespace that is not restricted",
        SIDECAR,
        lambda d: named(d, "Namespace")["metadata"]["labels"].clear(),
        "pod-security.kubernetes.io/enforce is not restricted",
    ),
    (
        "an agent with a capability",
        DAEMON,
        lambda d: agent(d)["securityContext"]["capabilities"].update(add=["CHOWN"]),
        "container est-agent: has rights beyond giving a folder away",
    ),
    (
        "an init container that may do more",
        DAEMON,
        lambda d: pod(d)["initContainers"][0]["securityContext"]["capabilities"]["add"].append(
            "DAC_OVERRIDE"
        ),
        "container folder: has rights beyond giving a folder away",
    ),
    (
        "an output outside of the folder",
        DAEMON,
        lambda d: change_definition(d, "/var/lib/est-node/key.pem", "/etc/ssl/key.pem"),
        "the agent cannot write /etc/ssl/key.pem",
    ),
    (
        "an exception that is not needed",
        DAEMON,
        lambda d: pod(d)["initContainers"].clear(),
        "the exception is not needed",
    ),
]


@pytest.mark.parametrize("name", example_rules.EXCEPTIONS)
def test_an_example_keeps_the_rules(rendered: dict[str, Documents], name: str) -> None:
    documents = rendered[name]
    assert manifests.schema_findings(documents) == []
    assert example_rules.findings(name, documents) == []


@pytest.mark.parametrize(
    ("name", "break_it", "finding"), [case[1:] for case in BREAKS], ids=[case[0] for case in BREAKS]
)
def test_a_rule_of_examples_finds(
    rendered: dict[str, Documents], name: str, break_it: Callable[[Documents], object], finding: str
) -> None:
    documents = copy.deepcopy(rendered[name])
    break_it(documents)
    found = example_rules.findings(name, documents)
    assert any(finding in line for line in found), found
