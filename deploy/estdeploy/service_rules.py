"""Rules for what serves: probes, availability, shutdown, network.

Called by: deploy/check.py
"""

from __future__ import annotations

from estdeploy.manifests import Document, Pod, named, of_kind, pods, selects

_PROBES = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
_STOP_S = 30
_CLOSING_S = 10
"""``stop_timeout_s`` (its default), and closing bus, pool and telemetry after it."""
_DOMAINS = 2
_DATABASE_PORT, _NATS_PORT, _DNS_PORT = 5432, 4222, 53


def probes_ask_the_admin_port(documents: list[Document]) -> list[str]:
    """Liveness asks /healthz, which needs no database; only readiness asks /readyz."""
    findings = []
    for pod in pods(documents, "Deployment"):
        for where, container in pod.containers():
            ports = {p.get("name") for p in container.get("ports", [])}
            for probe, path in _PROBES.items():
                asked = container.get(probe, {}).get("httpGet", {})
                if asked.get("path") != path or asked.get("port") != "admin":
                    findings.append(f"{where}: {probe} does not ask {path} on the admin port")
            if "admin" not in ports:
                findings.append(f"{where}: no port is named admin")
    return findings


def replicas_survive_disruption(documents: list[Document]) -> list[str]:
    """Each Deployment has one budget that lets a node drain, and rolls without a gap."""
    findings = []
    budgets = of_kind(documents, "PodDisruptionBudget")
    for deployment in of_kind(documents, "Deployment"):
        where = named(deployment)
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        mine = [b for b in budgets if selects(b["spec"]["selector"], labels)]
        if len(mine) != 1:
            findings.append(f"{where}: {len(mine)} PodDisruptionBudgets")
        for budget in mine:
            findings += _budget(where, budget["spec"], replicas(deployment, documents))
        rolling = deployment["spec"].get("strategy", {}).get("rollingUpdate", {})
        if rolling.get("maxUnavailable") != 0:
            findings.append(f"{where}: maxUnavailable of a rollout is not 0")
    return findings


def _budget(where: str, budget: Document, count: int) -> list[str]:
    if "maxUnavailable" in budget:
        return [] if budget["maxUnavailable"] != 0 else [f"{where}: its budget lets nothing drain"]
    least = budget.get("minAvailable")
    if not isinstance(least, int) or count <= least:
        return [f"{where}: {count} replicas are not more than minAvailable {least}"]
    return []


def replicas(deployment: Document, documents: list[Document]) -> int:
    """Return how many replicas there are at least: the autoscaler's word counts."""
    for scaler in of_kind(documents, "HorizontalPodAutoscaler"):
        if scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]:
            least: int = scaler["spec"].get("minReplicas", 1)
            return least
    count: int = deployment["spec"].get("replicas", 1)
    return count


def replicas_are_spread(documents: list[Document]) -> list[str]:
    """Replicas spread over zones and nodes, and each constraint counts its own pods."""
    findings = []
    for pod in pods(documents, "Deployment"):
        constraints = pod.spec.get("topologySpreadConstraints", [])
        keys = sorted(c["topologyKey"] for c in constraints)
        if keys != ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]:
            findings.append(f"{pod.where}: spread over {keys}")
        findings += [
            f"{pod.where}: the spread over {c['topologyKey']} counts other pods"
            for c in constraints
            if not c.get("labelSelector") or not selects(c["labelSelector"], pod.labels)
        ]
        # Only nodes that exist count otherwise: on one node nothing is skewed.
        findings += [
            f"{pod.where}: replicas may all share one {c['topologyKey']}"
            for c in constraints
            if c.get("whenUnsatisfiable") == "DoNotSchedule" and c.get("minDomains", 1) < _DOMAINS
        ]
    return findings


def shutdown_has_time(documents: list[Document]) -> list[str]:
    """Endpoints are gone before the pod stops, and what is in hand can be finished."""
    findings = []
    for pod in pods(documents, "Deployment"):
        grace = pod.spec.get("terminationGracePeriodSeconds", 30)
        for where, container in pod.containers():
            sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
            seconds = sleep.get("seconds", 0)
            if seconds < 1:
                findings.append(f"{where}: no preStop sleep")
            if grace < seconds + _STOP_S + _CLOSING_S:
                findings.append(f"{where}: {grace} s are too short to stop in")
    return findings


def selectors_find_their_pods(documents: list[Document]) -> list[str]:
    """A selector takes the pods it is meant for, and a Deployment's no other pods."""
    every = pods(documents)
    findings = []
    for deployment in of_kind(documents, "Deployment"):
        taken = [p for p in every if selects(deployment["spec"]["selector"], p.labels)]
        if [p.name for p in taken] != [deployment["metadata"]["name"]]:
            findings.append(f"{named(deployment)}: selects {[p.where for p in taken]}")
    for document in of_kind(documents, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        spec = document["spec"]
        selector = spec.get("podSelector", spec.get("selector", {}))
        if document["kind"] == "Service":
            selector = {"matchLabels": selector}
        if not any(selects(selector, p.labels) for p in every):
            findings.append(f"{named(document)}: selects no pod")
    accounts = {a["metadata"]["name"] for a in of_kind(documents, "ServiceAccount")}
    return findings + [
        f"{p.where}: no ServiceAccount {p.spec.get('serviceAccountName')}"
        for p in every
        if p.spec.get("serviceAccountName") not in accounts
    ]


def network_is_closed(documents: list[Document]) -> list[str]:
    """Deny first; then each pod has the flows of the architecture and no other."""
    policies = of_kind(documents, "NetworkPolicy")
    denies = [
        p["spec"]
        for p in policies
        if p["spec"]["podSelector"] == {}
        and set(p["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and not p["spec"].get("ingress")
        and not p["spec"].get("egress")
    ]
    findings = [] if denies else ["no policy denies everything in both directions"]
    for pod in pods(documents):
        for direction, allowed in _flows(pod).items():
            found = _ports(policies, pod, direction)
            if found - allowed:
                extra = sorted(map(str, found - allowed))
                findings.append(f"{pod.where}: {direction} to {', '.join(extra)} is open")
            if direction == "egress" and not _needed(pod) <= found:
                findings.append(f"{pod.where}: cannot reach {sorted(_needed(pod) - found)}")
    return findings


_SERVERS = {"nats": {"nats"}, "postgres": {"postgres"}}
"""Servers of ``overlays/all-in-one``, and the port that others may reach."""


def _flows(pod: Pod) -> dict[str, set[object]]:
    """Ports a pod may use; audit may also have a SIEM."""
    service = pod.labels.get("app.kubernetes.io/component") == "service"
    ingress: set[object] = {"admin"} if service else set()
    if pod.name == "est-frontend":
        ingress.add("est")
    if pod.name == "est-witness":
        ingress.add("witness")
    ingress |= _SERVERS.get(pod.name, set())
    egress: set[object] = {*_needed(pod)} | ({6514} if pod.name == "audit" else set())
    return {"ingress": ingress, "egress": egress}


_HTTPS = {443, 6443, 8443}
"""API servers of Kubernetes, and EST servers."""


def _needed(pod: Pod) -> set[int]:
    if pod.name == "est-issuer":
        return {_DNS_PORT, *_HTTPS}
    if pod.name == "est-witness":
        return set()  # it is asked, and asks for nothing
    if pod.name in _SERVERS:
        return {_DNS_PORT}
    if pod.name in {"est-frontend", "estctl"}:
        return {_DNS_PORT, _NATS_PORT}
    return {_DNS_PORT, _NATS_PORT, _DATABASE_PORT}


def _ports(policies: list[Document], pod: Pod, direction: str) -> set[object]:
    found: set[object] = set()
    for policy in policies:
        spec = policy["spec"]
        if selects(spec["podSelector"], pod.labels):
            for rule in spec.get(direction, []):
                found |= {port["port"] for port in rule.get("ports", [{"port": "every port"}])}
    return found
