"""Values of a chart: where each one is in Kustomize's documents, what it means, what it may be.

A value reads its default from the documents and puts a template expression in that place. The same
reading finds the values with which the chart renders an overlay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from estcore.errors import ConfigurationError
from esthelm.sources import Document, Documents
from esthelm.templates import Block, Inline, Node, Piped, member

Schema = dict[str, Any]
Place = tuple[str | int, ...]
POD: Place = ("spec", "template", "spec")
CONTAINER: Place = (*POD, "containers", 0)
JOB: Place = ("spec", "jobTemplate", "spec", "template", "spec")
POD_OF: Mapping[str, Place] = {"CronJob": JOB, "Deployment": POD, "StatefulSet": POD}
"""Where the pod is in a document of this kind."""
ABSENT: Any = object()
"""What a value reads from documents that do not have its place."""


@dataclass(frozen=True)
class Value:
    """One value of the chart."""

    name: str
    """Dotted path in values.yaml."""
    description: str
    schema: Schema
    read: Callable[[Documents], Any] = lambda _: ABSENT
    write: Callable[[Documents], None] = lambda _: None
    default: Any = ABSENT
    """The default, where it is not what the documents have."""

    @property
    def expression(self) -> str:
        """The value in a template."""
        return f"$.Values.{self.name}"


BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 1, "maximum": 1000}
TEXT: Schema = {"type": "string"}
NAME: Schema = {
    "type": "string",
    "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
    "maxLength": 253,
}
NAMESPACE: Schema = {
    "type": "string",
    "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    "maxLength": 63,
}
SIZE: Schema = {"type": "string", "pattern": "^[1-9][0-9]*(Ki|Mi|Gi|Ti|k|M|G|T)?$"}
_CPU: Schema = {"type": ["string", "number"], "pattern": "^[0-9]+(\\.[0-9]+|m)?$"}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
RESOURCES: Schema = {
    "type": "object",
    "additionalProperties": False,
    "required": ["requests", "limits"],
    "properties": {
        "requests": {
            "type": "object",
            "additionalProperties": False,
            "required": ["cpu", "memory"],
            "properties": {"cpu": _CPU, "memory": SIZE, "ephemeral-storage": SIZE},
        },
        "limits": {
            "type": "object",
            "additionalProperties": False,
            "required": ["memory"],
            "properties": {"cpu": _CPU, "memory": SIZE, "ephemeral-storage": SIZE},
        },
    },
}
NAMES: Schema = {"type": "array", "items": NAME, "uniqueItems": True}
CIDRS: Schema = {
    "type": "array",
    "uniqueItems": True,
    "items": {
        "type": "string",
        "pattern": "^([0-9]{1,3}(\\.[0-9]{1,3}){3}/[0-9]{1,2}|[0-9a-f:]+/[0-9]{1,3})$",
    },
}
LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
REPOSITORY: Schema = {"type": "string", "pattern": "^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*$"}
TAG: Schema = {"type": "string", "pattern": "^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$"}
DIGEST: Schema = {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"}
_IMAGE = re.compile(r"^(?P<repository>[^@]+?)(:(?P<tag>[^:/@]+))?(@(?P<digest>.+))?$")


def found(documents: Documents, kind: str, name: str, place: Place) -> Any:
    """Return the value at the path, or ABSENT."""
    node: Any = documents.get((kind, name), ABSENT)
    for step in place:
        if isinstance(node, dict):
            node = node.get(step, ABSENT)
        elif isinstance(node, list) and isinstance(step, int) and step < len(node):
            node = node[step]
        else:
            return ABSENT
    return node


def put(document: Document, place: Place, node: Any) -> None:
    """Put a node there."""
    inside: Any = document
    for step in place[:-1]:
        inside = inside[step]
    inside[place[-1]] = node


def at(
    name: str,
    description: str,
    schema: Schema,
    *places: tuple[str, str, Place],
    default: Any = ABSENT,
    node: Callable[[Value], Node] | None = None,
) -> Value:
    """Return a value that is in these places: kind, name, steps. The first one is read."""

    def write(documents: Documents) -> None:
        for kind, which, place in places:
            put(documents[kind, which], place, node(value) if node else _node(value))

    def read(documents: Documents) -> Any:
        return found(documents, *places[0])

    value = Value(name, description, schema, read, write, default)
    return value


def _node(value: Value) -> Node:
    if value.schema.get("type") in {"object", "array"}:
        return Block(f"toYaml {value.expression}")
    return Inline(f"toJson {value.expression}")


def image(
    name: str, what: str, *places: tuple[str, str, Place], define: str = "estsuite"
) -> Iterator[Value]:
    """Yield repository, tag and digest of an image."""

    def read(documents: Documents, part: str) -> Any:
        text = found(documents, *places[0])
        match = None if text is ABSENT else _IMAGE.match(text)
        return ABSENT if match is None else match[part] or ""

    def write(documents: Documents) -> None:
        for kind, which, place in places:
            expression = f'include "{define}.image" $.Values.{name}'
            put(documents[kind, which], place, Inline(expression))

    yield Value(
        f"{name}.repository",
        f"Image of {what}, with its registry.",
        REPOSITORY,
        lambda documents: read(documents, "repository"),
        write,
    )
    yield Value(
        f"{name}.tag",
        f"Tag of the image of {what}; empty with a digest alone.",
        TAG,
        lambda documents: read(documents, "tag"),
    )
    yield Value(
        f"{name}.digest",
        f"Digest of the image of {what}, as sha256:…; empty: the tag decides.",
        DIGEST,
        lambda documents: read(documents, "digest"),
    )


def defaults(values: list[Value], documents: Documents) -> dict[str, Any]:
    """Return the tree of defaults.

    Raises:
        ConfigurationError: the documents do not have the place of a value.
    """
    tree: dict[str, Any] = {}
    for value in values:
        default = value.read(documents) if value.default is ABSENT else value.default
        if default is ABSENT:
            raise ConfigurationError(f"{value.name} has no default")
        insert(tree, value.name, default)
    return tree


def changed(values: list[Value], tree: Mapping[str, Any], documents: Documents) -> dict[str, Any]:
    """Return the values, as a tree, with which the chart renders these documents."""
    different: dict[str, Any] = {}
    for value in values:
        read = value.read(documents)
        default = look_up(tree, value.name)
        if read is not ABSENT and read != default:
            insert(different, value.name, _difference(default, read))
    return different


def _difference(default: Any, read: Any) -> Any:
    """Helm merges mappings and replaces everything else."""
    if not isinstance(default, dict) or not default.keys() <= read.keys():
        return read
    return {
        key: _difference(default.get(key), item)
        for key, item in read.items()
        if default.get(key, ABSENT) != item
    }


def insert(tree: dict[str, Any], name: str, item: Any) -> None:
    """Put an item under a dotted name."""
    *parents, last = name.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = item


def look_up(tree: Mapping[str, Any], name: str) -> Any:
    """Return the item under a dotted name."""
    for step in name.split("."):
        tree = tree[step]
    return tree


def image_pull_secrets(where: str) -> Value:
    """Return the value that every pod has."""
    each = "{{ range $i, $name := . }}{{ if $i }}, {{ end }}{name: {{ toJson $name }}}{{ end }}"

    def write(documents: Documents) -> None:
        for (kind, name), _ in documents.items():
            if kind in POD_OF:
                pod = found(documents, kind, name, POD_OF[kind])
                member(pod, Piped("$.Values.imagePullSecrets", "imagePullSecrets", f"[{each}]"))

    text = f"Names of Secrets with credentials of the registry{where}."
    return Value("imagePullSecrets", text, NAMES, write=write, default=[])


def resources(name: str, what: str, *places: tuple[str, str, Place]) -> Value:
    """Return the requests and limits of a container, or of several."""
    return at(f"{name}.resources", f"Requests and limits of {what}.", RESOURCES, *places)
