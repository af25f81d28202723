"""The values of the chart estsuite: endpoints, images, services; the rest is beside this."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from esthelm.sources import Documents, Sources
from esthelm.suite_components import components, network
from esthelm.suite_files import camel, files, names
from esthelm.templates import Guarded, Inline, Piped, member
from esthelm.values import (
    BOOLEAN,
    CONTAINER,
    COUNT,
    JOB,
    LABELS,
    POD,
    SIZE,
    Place,
    Value,
    at,
    found,
    image,
    image_pull_secrets,
    resources,
)

_SERVICE_NAMES = ("est-frontend", "ca-signer", "renewal", "audit")
_URLS = r"^(tls://[^,\s]+(,tls://[^,\s]+)*)?$"


def values(sources: Sources) -> list[Value]:
    """Return the values of the chart, in the order of values.yaml."""
    return [
        *_endpoints(sources),
        *_images(),
        image_pull_secrets(""),
        *_services(sources),
        Value(
            "replicasOnTwoNodes",
            "Each service waits for a second node rather than have all replicas on one.",
            BOOLEAN,
            lambda d: _spread(d)["whenUnsatisfiable"] == "DoNotSchedule",
            _write_spread,
        ),
        Value(
            "pauseRollouts",
            "Do not roll out changed Deployments: for a migration before an upgrade.",
            BOOLEAN,
            write=_write_pause,
            default=False,
        ),
        *_migrate(),
        *components(sources),
        *network(),
        *names(sources),
        *files(sources),
    ]


def _endpoints(sources: Sources) -> Iterator[Value]:
    texts = (
        (
            "nats-url",
            "natsUrl",
            "URLs of NATS, separated by commas; empty: tls://nats.nats.svc:4222, or with "
            "servers.enabled the NATS of this chart.",
            {"type": "string", "pattern": _URLS},
        ),
        (
            "postgres-address",
            "postgresAddress",
            "host:port of PostgreSQL, whose database is estsuite; empty: "
            "postgres-rw.postgres.svc:5432, or with servers.enabled the PostgreSQL of this chart.",
            {"type": "string", "pattern": r"^([^\s/@:]+:[0-9]{1,5})?$"},
        ),
        (
            "stream-replicas",
            "streamReplicas",
            "Replicas of each stream, which migrate reads: 3, or 1 with one NATS server.",
            {"type": "integer", "minimum": 1, "maximum": 5},
        ),
    )
    computed = {
        documents["ConfigMap", "endpoints"]["data"][key]
        for documents in (sources.parts["base"], sources.overlays["all-in-one"])
        for key in ("nats-url", "postgres-address")
    }
    for key, name, description, schema in texts:

        def read(documents: Documents, key: str = key) -> Any:
            text = found(documents, "ConfigMap", "endpoints", ("data", key))
            if key == "stream-replicas":
                return int(text)
            return "" if text in computed else text

        yield Value(f"endpoints.{name}", description, schema, read)


def _images() -> Iterator[Value]:
    migrate = ("CronJob", "migrate")
    places: dict[str, list[tuple[str, str, Place]]] = {
        name: [("Deployment", name, (*CONTAINER, "image"))] for name in _SERVICE_NAMES
    }
    places["ca-signer"].append((*migrate, (*JOB, "initContainers", 0, "image")))
    places["renewal"].append((*migrate, (*JOB, "containers", 0, "image")))
    places["audit"].append((*migrate, (*JOB, "containers", 1, "image")))
    places["check-store"] = [("CronJob", "check-store", (*JOB, "containers", 0, "image"))]
    for name in ("estctl", "nats", "postgres"):
        places[name] = [("StatefulSet", name, (*CONTAINER, "image"))]
    for name, where in places.items():
        yield from image(f"images.{camel(name)}", name, *where)


def _services(sources: Sources) -> Iterator[Value]:
    frontend = ("Deployment", "est-frontend")
    volumes = found(sources.parts["base"], *frontend, (*POD, "volumes"))
    data = [volume["name"] for volume in volumes].index("data")
    scaler = ("HorizontalPodAutoscaler", "est-frontend")
    service = ("Service", "est-frontend")
    scale = "estFrontend.autoscaling"

    def write_replicas(documents: Documents) -> None:
        spec = documents[frontend]["spec"]
        node = Inline("toJson $.Values.estFrontend.replicas")
        member(spec, Guarded(f"not $.Values.{scale}.enabled", node, "replicas"), "selector")

    yield Value(
        f"{scale}.enabled",
        "Let a HorizontalPodAutoscaler own the replicas of est-frontend.",
        BOOLEAN,
        lambda d: scaler in d,
    )
    for key, place, description in (
        ("minReplicas", ("spec", "minReplicas"), "Replicas of est-frontend at least."),
        ("maxReplicas", ("spec", "maxReplicas"), "Replicas of est-frontend at most."),
        (
            "cpuUtilization",
            ("spec", "metrics", 0, "resource", "target", "averageUtilization"),
            "CPU use in percent of the request above which replicas are added.",
        ),
    ):
        yield at(f"{scale}.{key}", description, COUNT, (*scaler, place))
    yield Value(
        "estFrontend.replicas",
        "Replicas of est-frontend without autoscaling.",
        COUNT,
        lambda d: found(d, *frontend, ("spec", "replicas")),
        write_replicas,
        3,
    )
    yield resources("estFrontend", "est-frontend", (*frontend, (*CONTAINER, "resources")))
    yield at(
        "estFrontend.dataSize",
        "Most that the spool of audit records and the last known state may take in a pod.",
        SIZE,
        (*frontend, (*POD, "volumes", data, "emptyDir", "sizeLimit")),
    )
    kinds = {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]}
    yield at(
        "estFrontend.service.type",
        "Type of the Service est-frontend; a load balancer must pass TCP through.",
        kinds,
        (*service, ("spec", "type")),
    )
    yield Value(
        "estFrontend.service.annotations",
        "Annotations of the Service est-frontend.",
        LABELS,
        lambda d: found(d, *service, ("metadata", "annotations")),
        lambda d: member(
            d[service]["metadata"],
            Piped(
                "$.Values.estFrontend.service.annotations",
                "annotations",
                "{{- toYaml . | nindent 4 }}",
            ),
            "labels",
        ),
        {},
    )
    yield Value(
        "estFrontend.service.externalTrafficPolicy",
        "Local keeps the client's address, by which refusals are counted; empty: unset.",
        {"enum": ["", "Local", "Cluster"]},
        lambda d: found(d, *service, ("spec", "externalTrafficPolicy")),
        lambda d: member(
            d[service]["spec"],
            Piped(
                "$.Values.estFrontend.service.externalTrafficPolicy",
                "externalTrafficPolicy",
                "{{ toJson . }}",
            ),
        ),
        "",
    )
    for name in _SERVICE_NAMES[1:]:
        deployment = ("Deployment", name)
        yield at(
            f"{camel(name)}.replicas",
            f"Replicas of {name}"
            + ("; one writes, the others stand by." if name == "audit" else "."),
            COUNT,
            (*deployment, ("spec", "replicas")),
        )
        yield resources(camel(name), name, (*deployment, (*CONTAINER, "resources")))


def _migrate() -> Iterator[Value]:
    steps: tuple[Place, ...] = (
        (*JOB, "initContainers", 0),
        (*JOB, "containers", 0),
        (*JOB, "containers", 1),
    )
    places = [("CronJob", "migrate", (*step, "resources")) for step in steps]
    yield resources("migrate", "each container of a migration", *places)


def _spread(documents: Documents) -> Any:
    return documents["Deployment", "ca-signer"]["spec"]["template"]["spec"][
        "topologySpreadConstraints"
    ][1]


def _write_spread(documents: Documents) -> None:
    for name in _SERVICE_NAMES:
        spec = documents["Deployment", name]["spec"]["template"]["spec"]
        constraint = spec["topologySpreadConstraints"][1]
        text = 'ternary "DoNotSchedule" "ScheduleAnyway" $.Values.replicasOnTwoNodes'
        constraint["whenUnsatisfiable"] = Inline(text)
        member(constraint, Guarded("$.Values.replicasOnTwoNodes", 2, "minDomains"))


def _write_pause(documents: Documents) -> None:
    for name in _SERVICE_NAMES:
        member(
            documents["Deployment", name]["spec"], Guarded("$.Values.pauseRollouts", True, "paused")
        )
