"""Rules for every pod: restricted Pod Security and what goes beyond it.

Called by: deploy/check.py
"""

from __future__ import annotations

import re

from estdeploy.manifests import WORKLOADS, Document, Pod, named, of_kind, pods

_HOST = ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace")
_SECRET_NAME = re.compile(r"PASSWORD|PASSPHRASE|SEED|TOKEN|SECRET|PRIVATE", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"PRIVATE KEY|\bS[UAO][A-Z2-7]{56}\b|://[^/@\s]+:[^/@\s]+@")
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_TAG = re.compile(r":(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]*)$")
_WORLD = 0o007
CA_KEYS = frozenset({"ca-signer-key", "ca-signer-passphrase"})
"""Secrets with a CA key, and with its passphrase."""
_IDLE = ["sleep", "infinity"]
"""What the operator's pod does; other containers start what their image starts."""
_VOLUMES = {"configMap", "secret", "emptyDir", "projected"}
_OF_THE_CLUSTER = {"Namespace", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
_LONGEST_TOKEN_S = 3600


def namespace_is_restricted(documents: list[Document]) -> list[str]:
    """The one namespace enforces, audits and warns by the level "restricted"."""
    spaces = of_kind(documents, "Namespace")
    if len(spaces) != 1:
        return [f"{len(spaces)} namespaces instead of one"]
    labels = spaces[0]["metadata"].get("labels", {})
    name = spaces[0]["metadata"]["name"]
    findings = [
        f"Namespace {name}: pod-security.kubernetes.io/{mode} is not restricted"
        for mode in ("enforce", "audit", "warn")
        if labels.get(f"pod-security.kubernetes.io/{mode}") != "restricted"
    ]
    return findings + [
        f"{document['kind']} {document['metadata']['name']} is not in namespace {name}"
        for document in documents
        if document["kind"] not in _OF_THE_CLUSTER and document["metadata"].get("namespace") != name
    ]


def pods_are_restricted(documents: list[Document]) -> list[str]:
    """Pods run as a numeric user, confined, with no token and no service links."""
    findings = []
    for pod in pods(documents):
        context = pod.spec.get("securityContext", {})
        wrong = {
            "runAsNonRoot": context.get("runAsNonRoot") is not True,
            "runAsUser": not context.get("runAsUser"),
            "runAsGroup": not context.get("runAsGroup"),
            "fsGroup": not context.get("fsGroup"),
            "seccompProfile": context.get("seccompProfile", {}).get("type") != "RuntimeDefault",
            "automountServiceAccountToken": pod.spec.get("automountServiceAccountToken")
            is not False,
            "enableServiceLinks": pod.spec.get("enableServiceLinks") is not False,
            "serviceAccountName": pod.spec.get("serviceAccountName") in {None, "default"},
        }
        wrong |= {name: bool(pod.spec.get(name)) for name in _HOST}
        findings += [f"{pod.where}: {name}" for name, found in wrong.items() if found]
    return findings


def containers_are_restricted(documents: list[Document]) -> list[str]:
    """Containers cannot gain rights and write only to volumes."""
    findings = []
    for pod in pods(documents):
        for where, container in pod.containers():
            context = container.get("securityContext", {})
            capabilities = context.get("capabilities", {})
            wrong = {
                "allowPrivilegeEscalation": context.get("allowPrivilegeEscalation") is not False,
                "readOnlyRootFilesystem": context.get("readOnlyRootFilesystem") is not True,
                "capabilities.drop": capabilities.get("drop") != ["ALL"],
                "capabilities.add": bool(capabilities.get("add")),
                "privileged": bool(context.get("privileged")),
                "runAsUser": context.get("runAsUser", 1) == 0,
                "hostPort": any("hostPort" in port for port in container.get("ports", [])),
                "command": container.get("command", _IDLE) != _IDLE
                or ("command" in container and _repository(container) != "estctl"),
            }
            findings += [f"{where}: {name}" for name, found in wrong.items() if found]
    return findings


def images_are_pinned(documents: list[Document]) -> list[str]:
    """Every image has a digest, or a tag that is not "latest"."""
    findings = []
    for pod in pods(documents):
        for where, container in pod.containers():
            image = container["image"]
            tag = _TAG.search(image)
            if not _DIGEST.search(image) and (tag is None or tag["tag"] == "latest"):
                findings.append(f"{where}: image {image} has no tag of its own")
    return findings


def resources_are_said(documents: list[Document]) -> list[str]:
    """Every container requests CPU and memory and has a limit of memory."""
    findings = []
    for pod in pods(documents):
        for where, container in pod.containers():
            resources = container.get("resources", {})
            missing = {"cpu", "memory"} - resources.get("requests", {}).keys()
            findings += [f"{where}: requests no {name}" for name in sorted(missing)]
            if "memory" not in resources.get("limits", {}):
                findings.append(f"{where}: no limit of memory")
    return findings


def no_secret_in_plain_sight(documents: list[Document]) -> list[str]:
    """Secrets come as files from outside: not in the environment, not in what we render."""
    findings = [f"Secret {s['metadata']['name']} is rendered" for s in of_kind(documents, "Secret")]
    for document in of_kind(documents, "ConfigMap"):
        for key, text in document.get("data", {}).items():
            if _SECRET_TEXT.search(text):
                findings.append(f"ConfigMap {document['metadata']['name']}: a secret in {key}")
    for pod in pods(documents):
        for where, container in pod.containers():
            for variable in container.get("env", []):
                findings += [f"{where}: {text}" for text in _variable(variable)]
            for source in container.get("envFrom", []):
                if "secretRef" in source:
                    findings.append(f"{where}: envFrom a Secret")
    return findings


def _variable(variable: Document) -> list[str]:
    name = variable["name"]
    if "secretKeyRef" in variable.get("valueFrom", {}):
        return [f"{name} comes from a Secret"]
    if _SECRET_NAME.search(name) and not name.endswith("_FILE"):
        return [f"{name} looks like a secret"]
    if _SECRET_TEXT.search(variable.get("value", "")):
        return [f"the value of {name} is a secret"]
    return []


def volumes_are_bounded(documents: list[Document]) -> list[str]:
    """Volumes are of four kinds; /tmp is memory, bounded; secrets are closed to others."""
    findings = []
    for pod in pods(documents):
        for volume in pod.spec.get("volumes", []):
            findings += [f"{pod.where}, volume {volume['name']}: {t}" for t in _volume(volume)]
        for where, container in pod.containers():
            mounts = {m["mountPath"]: m["name"] for m in container.get("volumeMounts", [])}
            tmp = pod.volume(mounts.get("/tmp", "")).get("emptyDir", {})  # noqa: S108 - the mount
            if tmp.get("medium") != "Memory":
                findings.append(f"{where}: /tmp is not memory")
            findings += [
                f"{where}: mount {m['mountPath']} of {m['name']} is not readOnly"
                for m in container.get("volumeMounts", [])
                if "emptyDir" not in pod.volume(m["name"])
                and m["name"] not in pod.claims
                and not m.get("readOnly")
            ]
    return findings


def _volume(volume: Document) -> list[str]:
    if not _VOLUMES & volume.keys():
        return ["of a kind not used here"]
    if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
        return ["an emptyDir without sizeLimit"]
    # The API's default is 0644, which the services refuse to read.
    if "secret" in volume and volume["secret"].get("defaultMode", 0o644) & _WORLD:
        return ["a Secret that everybody may read"]
    return _projected(volume["projected"]) if "projected" in volume else []


def _projected(volume: Document) -> list[str]:
    """A token of the service account lives an hour; beside it there is no secret."""
    if volume.get("defaultMode", 0o644) & _WORLD:
        return ["a token that everybody may read"]
    findings = []
    for source in volume["sources"]:
        token = source.get("serviceAccountToken")
        if token is None and source.keys() != {"configMap"}:
            findings.append(f"projects {', '.join(source)}")
        elif token is not None and token.get("expirationSeconds", 1 << 30) > _LONGEST_TOKEN_S:
            findings.append("a token that lives longer than an hour")
    return findings


def migration_secrets_stay_with_migrations(documents: list[Document]) -> list[str]:
    """What can change schemas and streams, ``*-migrate``, is mounted by migrations only."""
    return [
        f"{pod.where}: mounts {name}"
        for pod in pods(documents)
        if (pod.kind, pod.name) != ("CronJob", "migrate")
        for name in _secret_names(pod)
        if name.endswith("-migrate")
    ]


def nothing_is_a_job(documents: list[Document]) -> list[str]:
    """No Job is applied: it cannot be changed, so every later apply would fail."""
    jobs = [f"{named(document)} cannot be changed" for document in of_kind(documents, "Job")]
    return jobs + [
        f"{named(document)}: is not suspended"
        for document in of_kind(documents, "CronJob")
        if document["metadata"]["name"] == "migrate" and not document["spec"].get("suspend")
    ]


def ca_keys_are_for_signing(documents: list[Document]) -> list[str]:
    """Only ``ca-signer run`` mounts a CA key or its passphrase, which are in two Secrets.

    A volume counts whether or not a container mounts it: the kubelet puts it on the node.
    """
    findings = []
    for pod in pods(documents):
        secrets = _secret_names(pod)
        held = sorted({name for name in secrets if name in CA_KEYS})
        if not held:
            continue
        for where, container in pod.containers():
            mounted = {m["name"] for m in container.get("volumeMounts", [])}
            names = {
                v["secret"]["secretName"]
                for v in pod.spec.get("volumes", [])
                if v["name"] in mounted and "secret" in v
            }
            signs = _repository(container) == "ca-signer" and container.get("args", [])[:1] == [
                "run"
            ]
            findings += [
                f"{where}: mounts {name}, and only ca-signer run may"
                for name in sorted(names & CA_KEYS)
                if not signs
            ]
        runs = pod.kind == "Deployment" and any(
            _repository(c) == "ca-signer" for _, c in pod.containers()
        )
        if not runs:
            findings += [f"{pod.where}: has the volume {name}" for name in held]
    return findings


def secrets_of_the_suite_are_read_by_no_account(documents: list[Document]) -> list[str]:
    """No role lets a service account read Secrets by the API where pods of the suite have theirs.

    Nor of every namespace. est-issuer reads Secrets, so it has a namespace of its own.
    """
    reading = {
        (role["kind"], role["metadata"]["name"])
        for role in of_kind(documents, "Role", "ClusterRole")
        for rule in role.get("rules", [])
        if {"", "*"} & {*rule.get("apiGroups", [])} and {"secrets", "*"} & {*rule["resources"]}
    }
    spaces = {
        document["metadata"].get("namespace")
        for document in of_kind(documents, *WORKLOADS)
        if any(_secret_names(pod) for pod in pods([document]))
    }
    return [
        f"{named(binding)}: lets Secrets of {binding['metadata'].get('namespace', 'all')} be read"
        for binding in of_kind(documents, "RoleBinding", "ClusterRoleBinding")
        if (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in reading
        and (
            binding["kind"] == "ClusterRoleBinding"
            or binding["metadata"].get("namespace") in spaces
        )
    ]


def _repository(container: Document) -> str:
    return re.split("[:@]", container["image"].rpartition("/")[2])[0]


def _secret_names(pod: Pod) -> list[str]:
    return [v["secret"]["secretName"] for v in pod.spec.get("volumes", []) if "secret" in v]
