"""The spec of an issuer: the model and the schema of both CRDs allow the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from est_issuer.errors import IssuerUnusable
from est_issuer.issuer_spec import IssuerSpec, read_spec
from est_issuer.kinds import GROUP, ISSUER_KINDS, VERSION

CRDS = Path(__file__).parents[3] / "deploy" / "k8s" / "components" / "est-issuer" / "crds.yaml"
GOOD: dict[str, Any] = {
    "url": "https://est.example:8443",
    "trust": {"configMapRef": {"name": "est-ca"}},
    "credentials": {"basic": {"secretRef": {"name": "est"}}},
}


def definitions() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(CRDS.read_text(encoding="utf-8")))


def shape(model: type[BaseModel]) -> dict[str, Any]:
    """The names of the fields of a model, and of those in it."""
    found = {}
    for field in model.model_fields.values():
        inner = [a for a in getattr(field.annotation, "__args__", ()) if isinstance(a, type)]
        models = [
            a
            for a in [field.annotation, *inner]
            if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        found[str(field.alias)] = shape(models[0]) if models else {}
    return found


def names(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: names(inner) for name, inner in schema.get("properties", {}).items()}


def test_the_definitions_have_the_fields_of_the_model() -> None:
    for found in definitions():
        (version,) = found["spec"]["versions"]
        spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
        assert names(spec) == shape(IssuerSpec)
        assert version["subresources"] == {"status": {}}


def test_both_definitions_have_the_same_schema_and_the_names_of_the_controller() -> None:
    one, other = definitions()
    assert one["spec"]["group"] == other["spec"]["group"] == GROUP
    schemas = [d["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for d in (one, other)]
    assert schemas[0]["properties"] == schemas[1]["properties"]
    for found in (one, other):
        resource = ISSUER_KINDS[found["spec"]["names"]["kind"]]
        assert found["spec"]["names"]["plural"] == resource.plural
        assert (found["spec"]["scope"] == "Namespaced") == resource.namespaced
        assert found["spec"]["versions"][0]["name"] == VERSION
        assert found["metadata"]["name"] == f"{resource.plural}.{GROUP}"


def test_defaults() -> None:
    spec = read_spec({"spec": GOOD})
    assert spec.renewal == "Enroll"
    assert spec.trust.config_map_ref is not None
    assert spec.trust.config_map_ref.key == "ca.crt"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"url": "http://est.example"}, "spec.url"),
        ({"url": "https://user@est.example"}, "spec.url"),
        ({"url": "https://est.example/path"}, "spec.url"),
        ({"label": "a/b"}, "spec.label"),
        ({"renewal": "Never"}, "spec.renewal"),
        ({"trust": {}}, "exactly one of caBundle, configMapRef and secretRef"),
        ({"trust": {"caBundle": "AA==", "secretRef": {"name": "a"}}}, "exactly one of caBundle"),
        ({"credentials": {}}, "exactly one of basic, token, clientCertificate and podToken"),
        ({"credentials": {"basic": {"secretRef": {"name": "../a"}}}}, "spec.credentials.basic"),
        ({"unknown": 1}, "spec.unknown"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], text: str) -> None:
    with pytest.raises(IssuerUnusable, match=text) as raised:
        read_spec({"spec": {**GOOD, **change}})
    assert raised.value.condition == "InvalidSpec"


def test_an_empty_object_is_refused() -> None:
    with pytest.raises(IssuerUnusable):
        read_spec({})
