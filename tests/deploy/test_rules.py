"""Our own rules for manifests: the real ones pass, and each rule notices what it is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from estdeploy import compose_rules, manifests, pod_rules, pod_settings, service_rules
from estdeploy.services import IMAGES

from estsetup import nats

Documents = list[dict[str, Any]]
Rule = Callable[[Documents], list[str]]


def mount(documents: Documents, workload: str, secret: str, *, init: bool = False) -> None:
    """Give a container of a workload a Secret."""
    spec = pod(documents, workload)
    spec["volumes"].append({"name": secret, "secret": {"secretName": secret, "defaultMode": 288}})
    one = spec["initContainers" if init else "containers"][0]
    path = f"/run/secrets/{secret}"
    one["volumeMounts"].append({"name": secret, "mountPath": path, "readOnly": True})


def find(documents: Documents, kind: str, name: str) -> dict[str, Any]:
    for document in documents:
        if document["kind"] == kind and document["metadata"]["name"].startswith(name):
            return document
    raise AssertionError(f"no {kind} {name}")


def pod(documents: Documents, name: str = "ca-signer") -> dict[str, Any]:
    found = (
        find(documents, "CronJob", name)["spec"]["jobTemplate"]
        if name == "migrate"
        else find(documents, "Deployment", name)
    )
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    return spec


def container(documents: Documents, name: str = "ca-signer") -> dict[str, Any]:
    one: dict[str, Any] = pod(documents, name)["containers"][0]
    return one


def drop(documents: Documents, kind: str, name: str) -> None:
    documents.remove(find(documents, kind, name))


def as_a_job(documents: Documents) -> None:
    cron = find(documents, "CronJob", "migrate")
    cron |= {"kind": "Job", "apiVersion": "batch/v1", "spec": cron["spec"]["jobTemplate"]["spec"]}


def strict_spread(documents: Documents) -> None:
    pod(documents)["topologySpreadConstraints"][1]["whenUnsatisfiable"] = "DoNotSchedule"


BREAKS: list[tuple[str, Rule, Callable[[Documents], object], str]] = [
    ("a Job", pod_rules.nothing_is_a_job, as_a_job, "Job migrate cannot be changed"),
    (
        "a migration that starts by itself",
        pod_rules.nothing_is_a_job,
        lambda d: find(d, "CronJob", "migrate")["spec"].pop("suspend"),
        "CronJob migrate: is not suspended",
    ),
    (
        "a spread that one node satisfies",
        service_rules.replicas_are_spread,
        strict_spread,
        "replicas may all share one kubernetes.io/hostname",
    ),
    (
        "a command of its own",
        pod_rules.containers_are_restricted,
        lambda d: container(d).update({"command": ["sleep", "infinity"]}),
        "container service: command",
    ),
    (
        "a namespace that only warns",
        pod_rules.namespace_is_restricted,
        lambda d: find(d, "Namespace", "estsuite")["metadata"]["labels"].update(
            {"pod-security.kubernetes.io/enforce": "baseline"}
        ),
        "enforce is not restricted",
    ),
    (
        "service links",
        pod_rules.pods_are_restricted,
        lambda d: pod(d).update(enableServiceLinks=True),
        "Deployment ca-signer: enableServiceLinks",
    ),
    (
        "a mounted token",
        pod_rules.pods_are_restricted,
        lambda d: pod(d, "migrate").pop("automountServiceAccountToken"),
        "CronJob migrate: automountServiceAccountToken",
    ),
    (
        "root in a pod",
        pod_rules.pods_are_restricted,
        lambda d: pod(d)["securityContext"].update(runAsUser=0),
        "Deployment ca-signer: runAsUser",
    ),
    (
        "an init container that keeps its capabilities",
        pod_rules.containers_are_restricted,
        lambda d: pod(d, "migrate")["initContainers"][0]["securityContext"].pop("capabilities"),
        "CronJob migrate, container ca-signer: capabilities.drop",
    ),
    (
        "a writable root",
        pod_rules.containers_are_restricted,
        lambda d: container(d)["securityContext"].update(readOnlyRootFilesystem=False),
        "readOnlyRootFilesystem",
    ),
    (
        "the tag latest",
        pod_rules.images_are_pinned,
        lambda d: container(d).update(image="registry:5000/estsuite/ca-signer:latest"),
        "has no tag of its own",
    ),
    (
        "no tag behind a registry's port",
        pod_rules.images_are_pinned,
        lambda d: container(d).update(image="registry:5000/estsuite/ca-signer"),
        "has no tag of its own",
    ),
    (
        "no limit of memory",
        pod_rules.resources_are_said,
        lambda d: container(d)["resources"].pop("limits"),
        "no limit of memory",
    ),
    (
        "a password from a Secret in the environment",
        pod_rules.no_secret_in_plain_sight,
        lambda d: container(d)["env"].append(
            {"name": "X", "valueFrom": {"secretKeyRef": {"name": "ca-signer", "key": "p"}}}
        ),
        "X comes from a Secret",
    ),
    (
        "a password in a URL",
        pod_rules.no_secret_in_plain_sight,
        lambda d: container(d)["env"].append({"name": "X", "value": "postgresql://a:b@c/d"}),
        "the value of X is a secret",
    ),
    (
        "a key in a ConfigMap",
        pod_rules.no_secret_in_plain_sight,
        lambda d: find(d, "ConfigMap", "audit-config")["data"].update(
            k="-----BEGIN PRIVATE KEY-----"
        ),
        "a secret in k",
    ),
    (
        "a Secret that everybody may read, as the services refuse it",
        pod_rules.volumes_are_bounded,
        lambda d: next(v for v in pod(d)["volumes"] if "secret" in v)["secret"].pop("defaultMode"),
        "a Secret that everybody may read",
    ),
    (
        "/tmp on disk",
        pod_rules.volumes_are_bounded,
        lambda d: next(v for v in pod(d)["volumes"] if v["name"] == "tmp")["emptyDir"].pop(
            "medium"
        ),
        "/tmp is not memory",
    ),
    (
        "a service that could migrate",
        pod_rules.migration_secrets_stay_with_migrations,
        lambda d: pod(d)["volumes"].append(
            {"name": "m", "secret": {"secretName": "ca-signer-migrate", "defaultMode": 288}}
        ),
        "Deployment ca-signer: mounts ca-signer-migrate",
    ),
    (
        "a migration with the CA key",
        pod_rules.ca_keys_are_for_signing,
        lambda d: mount(d, "migrate", "ca-signer-key", init=True),
        "CronJob migrate, container ca-signer: mounts ca-signer-key, and only ca-signer run may",
    ),
    (
        "another container of a migration with the passphrase",
        pod_rules.ca_keys_are_for_signing,
        lambda d: mount(d, "migrate", "ca-signer-passphrase"),
        "CronJob migrate, container renewal: mounts ca-signer-passphrase",
    ),
    (
        "a volume with the CA key that no container mounts",
        pod_rules.ca_keys_are_for_signing,
        lambda d: pod(d, "migrate")["volumes"].append(
            {"name": "k", "secret": {"secretName": "ca-signer-key", "defaultMode": 288}}
        ),
        "CronJob migrate: has the volume ca-signer-key",
    ),
    (
        "a CA key in another service",
        pod_rules.ca_keys_are_for_signing,
        lambda d: mount(d, "est-frontend", "ca-signer-key"),
        "Deployment est-frontend, container service: mounts ca-signer-key",
    ),
    (
        "another verb of ca-signer with the CA key",
        pod_rules.ca_keys_are_for_signing,
        lambda d: container(d)["args"].__setitem__(0, "export"),
        "Deployment ca-signer, container service: mounts ca-signer-key",
    ),
    (
        "a migration with a runtime password",
        pod_settings.settings_can_be_loaded,
        lambda d: mount(d, "migrate", "ca-signer", init=True),
        "database.password_file is mounted, and migrate does not read it",
    ),
    (
        "a migration with the key of the audit log's checkpoints",
        pod_settings.settings_can_be_loaded,
        lambda d: (
            pod(d, "migrate")["containers"][1]["volumeMounts"].append(
                {"name": "audit", "mountPath": "/run/secrets/audit", "readOnly": True}
            )
            or pod(d, "migrate")["volumes"].append(
                {"name": "audit", "secret": {"secretName": "audit", "defaultMode": 288}}
            )
        ),
        "checkpoint.key_file is mounted, and migrate does not read it",
    ),
    (
        "the passphrase beside the key",
        pod_settings.settings_can_be_loaded,
        lambda d: find(d, "ConfigMap", "ca-signer-config")["data"].update(
            {
                "ca-signer.yaml": find(d, "ConfigMap", "ca-signer-config")["data"][
                    "ca-signer.yaml"
                ].replace("ca-signer-passphrase/passphrase", "ca-signer-key/passphrase")
            }
        ),
        "issuer issuing: key and passphrase are in one Secret",
    ),
    (
        "liveness that depends on a database",
        service_rules.probes_ask_the_admin_port,
        lambda d: container(d)["livenessProbe"]["httpGet"].update(path="/readyz"),
        "livenessProbe does not ask /healthz",
    ),
    (
        "no budget",
        service_rules.replicas_survive_disruption,
        lambda d: drop(d, "PodDisruptionBudget", "audit"),
        "Deployment audit: 0 PodDisruptionBudgets",
    ),
    (
        "a budget that no node can drain under",
        service_rules.replicas_survive_disruption,
        lambda d: find(d, "PodDisruptionBudget", "audit").update(
            spec={
                "minAvailable": 2,
                "selector": {"matchLabels": {"app.kubernetes.io/name": "audit"}},
            }
        ),
        "2 replicas are not more than minAvailable 2",
    ),
    (
        "a rollout with a gap",
        service_rules.replicas_survive_disruption,
        lambda d: find(d, "Deployment", "audit")["spec"].pop("strategy"),
        "maxUnavailable of a rollout is not 0",
    ),
    (
        "a spread that counts no pod",
        service_rules.replicas_are_spread,
        lambda d: pod(d)["topologySpreadConstraints"][0].pop("labelSelector"),
        "counts other pods",
    ),
    (
        "too little time to stop",
        service_rules.shutdown_has_time,
        lambda d: pod(d).update(terminationGracePeriodSeconds=30),
        "30 s are too short",
    ),
    (
        "a Service without pods",
        service_rules.selectors_find_their_pods,
        lambda d: find(d, "Service", "est-frontend")["spec"]["selector"].update(
            {"app.kubernetes.io/name": "frontend"}
        ),
        "Service est-frontend: selects no pod",
    ),
    (
        "a network open by default",
        service_rules.network_is_closed,
        lambda d: drop(d, "NetworkPolicy", "default-deny"),
        "no policy denies everything",
    ),
    (
        "a way into the signer",
        service_rules.network_is_closed,
        lambda d: find(d, "NetworkPolicy", "est")["spec"].update(podSelector={}),
        "Deployment ca-signer: ingress to est is open",
    ),
    (
        "a signer without its ledger",
        service_rules.network_is_closed,
        lambda d: drop(d, "NetworkPolicy", "postgres"),
        "Deployment ca-signer: cannot reach [5432]",
    ),
    (
        "an unknown key in a settings file",
        pod_settings.settings_can_be_loaded,
        lambda d: find(d, "ConfigMap", "renewal-config")["data"].update(
            {"renewal.yaml": "speed: 11\n"}
        ),
        "Deployment renewal, container service",
    ),
    (
        "an unknown variable",
        pod_settings.settings_can_be_loaded,
        lambda d: container(d)["env"].append({"name": "CA_SIGNER_SERVICE_HOST", "value": "1"}),
        "CA_SIGNER_SERVICE_HOST is not a setting",
    ),
    (
        "a file that nothing mounts",
        pod_settings.settings_can_be_loaded,
        lambda d: container(d)["volumeMounts"].pop(
            [m["name"] for m in container(d)["volumeMounts"]].index("ca-signer-key")
        ),
        "issuing.key, which nothing mounts",
    ),
    (
        "a probe on loopback",
        pod_settings.settings_can_be_loaded,
        lambda d: container(d)["env"].append(
            {"name": "CA_SIGNER__ADMIN__HOST", "value": "127.0.0.1"}
        ),
        "the admin port is not on 0.0.0.0:9100",
    ),
]


def issuer(root: Path) -> Documents:
    return manifests.render(root / "deploy" / "k8s" / "overlays" / "est-issuer")


def test_the_issuer_is_refused_where_the_secrets_of_the_suite_are(
    root: Path, base: Documents
) -> None:
    """Kustomize moves a component into the namespace of the overlay that names it."""
    rule = pod_rules.secrets_of_the_suite_are_read_by_no_account
    alone = issuer(root)
    assert rule(alone) == rule([*base, *alone]) == []
    moved = [{**d, "metadata": {**d["metadata"], "namespace": "estsuite"}} for d in alone]
    findings = rule([*base, *moved])
    assert findings == ["RoleBinding est-issuer-secrets: lets Secrets of estsuite be read"]
    everywhere = find(alone, "RoleBinding", "est-issuer-secrets") | {"kind": "ClusterRoleBinding"}
    everywhere["metadata"].pop("namespace")
    assert rule([*alone, everywhere])


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"defaultMode": 0o444}, "a token that everybody may read"),
        (
            {"sources": [{"serviceAccountToken": {"expirationSeconds": 7200}}]},
            "longer than an hour",
        ),
        ({"sources": [{"serviceAccountToken": {}}]}, "longer than an hour"),
        ({"sources": [{"secret": {"name": "a"}}]}, "projects secret"),
    ],
)
def test_a_token_in_a_pod_is_short_and_its_own(
    root: Path, change: dict[str, Any], finding: str
) -> None:
    documents = issuer(root)
    assert pod_rules.volumes_are_bounded(documents) == []
    (volume,) = [v for v in pod(documents, "est-issuer")["volumes"] if "projected" in v]
    volume["projected"] |= change
    (found,) = pod_rules.volumes_are_bounded(documents)
    assert finding in found


@pytest.mark.parametrize(
    ("rule", "break_it", "finding"), [case[1:] for case in BREAKS], ids=[case[0] for case in BREAKS]
)
def test_a_rule_finds(
    base: Documents, rule: Rule, break_it: Callable[[Documents], object], finding: str
) -> None:
    assert rule(base) == []
    break_it(base)
    assert any(finding in found for found in rule(base)), rule(base)


def test_the_strict_schema_refuses_a_misspelt_field(base: Documents) -> None:
    pod(base).update(enableServiceLink=False)
    assert any("enableServiceLink" in f for f in manifests.schema_findings(base))


def test_the_oldest_version_named_in_the_readme_takes_it_too(prod: Documents) -> None:
    assert manifests.schema_findings(prod, "1.30.0") == []


def test_the_deployments_have_the_replicas_that_were_decided(
    base: Documents, dev: Documents
) -> None:
    def counts(documents: Documents) -> dict[str, int]:
        return {
            d["metadata"]["name"]: service_rules.replicas(d, documents)
            for d in manifests.of_kind(documents, "Deployment")
        }

    assert counts(base) == {"est-frontend": 3, "ca-signer": 2, "renewal": 2, "audit": 2}
    assert set(counts(dev).values()) == {1}


def test_production_keeps_replicas_on_different_nodes(prod: Documents) -> None:
    for one in manifests.pods(prod, "Deployment"):
        by_key = {
            c["topologyKey"]: c["whenUnsatisfiable"] for c in one.spec["topologySpreadConstraints"]
        }
        assert by_key["kubernetes.io/hostname"] == "DoNotSchedule"


def test_every_secret_is_described_in_the_readme(root: Path) -> None:
    readme = (root / "deploy" / "README.md").read_text(encoding="utf-8")
    for name, keys in pod_settings.SECRETS.items():
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{name}` |"))
        assert {key for key in keys if f"`{key}`" in row} == keys


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("USER 10001:10001", "USER root", "no a numeric user"),
        ('ENTRYPOINT ["', "ENTRYPOINT sh -c [", "no its command without a shell"),
        (" --no-dev", "", "the installation has no --no-dev"),
        ("--require-hashes ", "", "the installation of uv has no --require-hashes"),
        ("-r deploy/requirements-uv.txt", "uv==1", "the installation of uv has no -r deploy"),
        ("LABEL estsuite.sbom", "# ", "no label names the bill of materials"),
        ("deploy/estsupply/sbom.py", "x.py", "no bill of materials is made"),
        ("deploy/estsupply/strip_symbols.py", "x.py", "libraries keep their debug information"),
        ("HEALTHCHECK", "# ", "services, and only they"),
        ("RUN set", "RUN --mount=type=cache,target=/x set", "legacy builder"),
    ],
)
def test_a_dockerfile_rule_finds(root: Path, old: str, new: str, finding: str) -> None:
    text = (root / "Dockerfile").read_text(encoding="utf-8")
    assert compose_rules.dockerfile_findings(text) == []
    broken = text.replace(old, new) if old != "HEALTHCHECK" else text.replace("/healthz", "/")
    assert any(finding in found for found in compose_rules.dockerfile_findings(broken))


def test_the_readme_builds_every_image(root: Path) -> None:
    readme = (root / "deploy" / "README.md").read_text(encoding="utf-8")
    for name, image in IMAGES.items():
        line = next(li for li in readme.splitlines() if f"-t estsuite/{name}:" in li)
        target = "--target job " if image.target == "job" else ""
        arguments = " ".join(
            f'--build-arg {key}="{value}"' if " " in value else f"--build-arg {key}={value}"
            for key, value in image.arguments.items()
        )
        assert line == f"docker build -t estsuite/{name}:0.1.0 {target}{arguments} ."


def nightly(root: Path) -> Documents:
    return manifests.render(root / "deploy" / "k8s" / "overlays" / "prod")


def test_the_nightly_check_runs_without_a_key_and_that_is_looked_at(root: Path) -> None:
    documents = nightly(root)
    rules = (pod_settings.settings_can_be_loaded, pod_rules.ca_keys_are_for_signing)
    assert [finding for rule in rules for finding in rule(documents)] == []
    spec = find(documents, "CronJob", "check-store")["spec"]["jobTemplate"]["spec"]["template"]
    (one,) = spec["spec"]["containers"]
    for name in sorted(pod_rules.CA_KEYS):
        secret = {"secretName": name, "defaultMode": 288}
        spec["spec"]["volumes"].append({"name": name, "secret": secret})
        path = f"/run/secrets/{name}"
        one["volumeMounts"].append({"name": name, "mountPath": path, "readOnly": True})
    where = "CronJob check-store, container check-store"
    assert pod_settings.settings_can_be_loaded(documents) == [
        f"{where}: issuers.{name}_file is mounted, and check-store does not read it"
        for name in ("key", "passphrase")
    ]
    found = pod_rules.ca_keys_are_for_signing(documents)
    assert f"{where}: mounts ca-signer-key, and only ca-signer run may" in found


def test_the_nightly_check_has_a_role_and_a_user_that_only_read(root: Path) -> None:
    documents = nightly(root)
    spec = find(documents, "CronJob", "check-store")["spec"]["jobTemplate"]["spec"]["template"]
    (one,) = spec["spec"]["containers"]
    given = pod_settings.environment(one, documents)
    assert given["CA_SIGNER__DATABASE__URL"].startswith("postgresql://ca_signer_reader@")
    secrets = {v["secret"]["secretName"] for v in spec["spec"]["volumes"] if "secret" in v}
    assert secrets == {"check-store", "ca-signer-issuing"}
    rights = nats.users()["check-store"]
    assert rights.publish == (f"audit.refusal.ca-signer.{given['CA_SIGNER__INSTANCE']}",)
