"""Rules for the examples of the agent in pods: those of every pod, and what the agent needs.

An example may break a rule only by an exception named here, and an exception that is no longer
needed is a finding.

Called by: deploy/check.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import yaml
from pydantic import ValidationError

from estclient.agent.definition_folder import merged
from estclient.agent.host_settings import HostSettings
from estclient.agent.settings import AgentSettings
from estcore.errors import ConfigurationError
from estdeploy import pod_rules, service_rules
from estdeploy.manifests import Document, Pod, of_kind, pods, selects
from estdeploy.pod_settings import environment

Rule = Callable[[list[Document]], list[str]]
_DAEMON = "DaemonSet est-agent"
_FOLDER = f"{_DAEMON}, container folder"
_NODE = "mount /var/lib/est-node of node is not readOnly"
EXCEPTIONS: Mapping[str, frozenset[str]] = {
    # The application of the example is a program from a ConfigMap.
    "examples/agent-sidecar": frozenset({"Deployment orders, container orders: command"}),
    # Files of the node need a hostPath, and the kubelet makes its folder for root.
    "examples/agent-daemonset": frozenset(
        {
            *(
                f"Namespace est-nodes: pod-security.kubernetes.io/{mode} is not restricted"
                for mode in ("enforce", "audit", "warn")
            ),
            *(f"{_FOLDER}: {name}" for name in ("capabilities.add", "runAsUser", "command")),
            f"{_DAEMON}, volume node: of a kind not used here",
            f"{_FOLDER}: {_NODE}",
            f"{_DAEMON}, container est-agent: {_NODE}",
        }
    ),
}
"""What each example needs beyond the rules, as findings."""
_ROOT_MAY = ["CHOWN"]
_PORT = 9100
_EXTERNAL = "est-root"
"""The ConfigMap with the root certificate, which comes from outside."""
_DNS_PORT, _EST_PORT = 53, 8443


def findings(name: str, documents: list[Document]) -> list[str]:
    """Return what breaks a rule and is no exception, and exceptions that nothing needs."""
    found = [finding for rule in RULES for finding in rule(documents)]
    allowed = EXCEPTIONS[name]
    return [f for f in found if f not in allowed] + [
        f"the exception is not needed: {exception}" for exception in sorted(allowed - {*found})
    ]


def agents(documents: list[Document]) -> Iterator[tuple[Pod, str, Document]]:
    """Yield each container that runs the agent, with its pod and how findings name it."""
    for pod in pods(documents):
        for where, container in pod.containers():
            if container.get("args", [])[:2] == ["agent", "run"]:
                yield pod, where, container


def an_agent_runs(documents: list[Document]) -> list[str]:
    """An example has exactly one container with the agent; in a Deployment a native sidecar."""
    found = [*agents(documents)]
    if len(found) != 1:
        return [f"{len(found)} containers run the agent"]
    ((pod, where, container),) = found
    sidecar = container in pod.spec.get("initContainers", [])
    if pod.kind == "Deployment" and (not sidecar or container.get("restartPolicy") != "Always"):
        return [f"{where}: is no native sidecar"]
    return []


def agent_settings_can_be_loaded(documents: list[Document]) -> list[str]:
    """Settings and definitions are valid, each path is mounted, probes reach the admin port."""
    result = []
    for pod, where, container in agents(documents):
        try:
            result += [f"{where}: {text}" for text in _agent(pod, container, documents)]
        except ConfigurationError as exc:
            result.append(f"{where}: {exc.reason}")
        except (ValidationError, KeyError) as exc:
            result.append(f"{where}: settings: {' '.join(str(exc).split())}")
    return result


def _agent(pod: Pod, container: Document, documents: list[Document]) -> Iterator[str]:
    files = dict(_files(pod, container, documents))
    raw = yaml.safe_load(files[container["args"][3]])
    variables = environment(container, documents)
    raw["defaults"] = yaml.safe_load(variables["EST_AGENT__DEFAULTS"])
    host = HostSettings.model_validate(raw)
    if host.admin is None or (host.admin.host, host.admin.port) != ("0.0.0.0", _PORT):  # noqa: S104 - pods
        yield f"the admin port is not on 0.0.0.0:{_PORT}, where probes can reach it"
    if {"name": "admin", "containerPort": _PORT} not in container.get("ports", []):
        yield f"no port {_PORT} is named admin"
    yield from _probes(pod, container)
    definitions = [f for f in files if Path(f).parent == host.definitions]
    if not definitions:
        yield f"{host.definitions} has no definition"
    for file in definitions:
        own = yaml.safe_load(files[file])
        store = str(host.state_folder / Path(file).stem)
        settings = AgentSettings.model_validate(merged({"store": store} | host.defaults, own))
        bootstrap = settings.bootstrap
        token = bootstrap.token.service_account_file if bootstrap and bootstrap.token else None
        if token is None:
            yield f"{file}: the first credential is no service-account token"
        known = {*files, *_tokens(pod, container)}
        for path in (settings.server.trust_file, token):
            if path is not None and str(path) not in known:
                yield f"{file}: nothing mounts {path}"
        for path in (settings.store, *(f for o in settings.outputs for f in o.files)):
            if not any(path.is_relative_to(folder) for folder in _writable(container)):
                yield f"{file}: the agent cannot write {path}"


def _probes(pod: Pod, container: Document) -> Iterator[str]:
    starts = "/readyz" if pod.kind == "Deployment" else "/healthz"
    wanted = {"startupProbe": starts, "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    for probe, path in wanted.items():
        asked = container.get(probe, {}).get("httpGet", {})
        if (asked.get("path"), asked.get("port")) != (path, "admin"):
            yield f"{probe} does not ask {path} on the admin port"


def _writable(container: Document) -> list[str]:
    return [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]


def _files(pod: Pod, container: Document, documents: list[Document]) -> Iterator[tuple[str, str]]:
    maps = {m["metadata"]["name"]: m["data"] for m in of_kind(documents, "ConfigMap")}
    for mount in container.get("volumeMounts", []):
        source = pod.volume(mount["name"]).get("configMap")
        if source is None:
            continue
        folder = Path(mount["mountPath"])
        if source["name"] == _EXTERNAL:
            yield str(folder / "root.pem"), ""
            continue
        data = maps[source["name"]]
        items = source.get("items", [{"key": key, "path": key} for key in data])
        for item in items:
            yield str(folder / item["path"]), data[item["key"]]


def _tokens(pod: Pod, container: Document) -> Iterator[str]:
    for mount in container.get("volumeMounts", []):
        for source in pod.volume(mount["name"]).get("projected", {}).get("sources", []):
            if "serviceAccountToken" in source:
                path = source["serviceAccountToken"]["path"]
                yield str(Path(mount["mountPath"]) / path)


def keys_are_in_memory(documents: list[Document]) -> list[str]:
    """What the agent of a Deployment writes is in memory; others mount it readOnly."""
    result = []
    for pod, where, container in agents(documents):
        if pod.kind != "Deployment":
            continue
        written = {m["name"] for m in container["volumeMounts"] if not m.get("readOnly")}
        result += [
            f"{where}: volume {name} is not in memory"
            for name in sorted(written)
            if pod.volume(name).get("emptyDir", {}).get("medium") != "Memory"
        ]
        result += [
            f"{other}: may write {mount['name']} of the agent"
            for other, others in pod.containers()
            if others is not container
            for mount in others.get("volumeMounts", [])
            if mount["name"] in written and not mount.get("readOnly")
        ]
    return result


def root_only_gives_folders_away(documents: list[Document]) -> list[str]:
    """A container that runs as root is an init container with no capability but CHOWN."""
    result = []
    for pod in pods(documents):
        for where, container in pod.containers():
            context = container.get("securityContext", {})
            added = context.get("capabilities", {}).get("add", [])
            if context.get("runAsUser") != 0 and not added:
                continue
            if container not in pod.spec.get("initContainers", []) or added != _ROOT_MAY:
                result.append(f"{where}: has rights beyond giving a folder away")
    return result


def agent_network_is_closed(documents: list[Document]) -> list[str]:
    """One policy isolates each pod in both directions, and lets it reach DNS and EST servers."""
    result = []
    for pod in pods(documents):
        mine = [
            p["spec"]
            for p in of_kind(documents, "NetworkPolicy")
            if selects(p["spec"]["podSelector"], pod.labels)
        ]
        if {d for p in mine for d in p["policyTypes"]} != {"Ingress", "Egress"}:
            result.append(f"{pod.where}: no policy isolates it in both directions")
        rules = [rule for p in mine for rule in p.get("egress", [])]
        ports = {port["port"] for rule in rules for port in rule.get("ports", [{"port": "every"}])}
        if ports != {_DNS_PORT, _EST_PORT} or not all(rule.get("to") for rule in rules):
            result.append(f"{pod.where}: egress is not DNS and EST alone")
    return result


RULES: tuple[Rule, ...] = (
    pod_rules.namespace_is_restricted,
    pod_rules.pods_are_restricted,
    pod_rules.containers_are_restricted,
    pod_rules.images_are_pinned,
    pod_rules.resources_are_said,
    pod_rules.no_secret_in_plain_sight,
    pod_rules.volumes_are_bounded,
    pod_rules.nothing_is_a_job,
    service_rules.replicas_survive_disruption,
    service_rules.replicas_are_spread,
    service_rules.selectors_find_their_pods,
    an_agent_runs,
    agent_settings_can_be_loaded,
    keys_are_in_memory,
    root_only_gives_folders_away,
    agent_network_is_closed,
)
