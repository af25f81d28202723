"""JSON Schema of a service's settings, for values that are merged into its settings file.

Nothing is required of a mapping that is merged; items of lists, which replace those of the file,
must be complete.
"""

from __future__ import annotations

from typing import Any

from estdeploy.services import AnySettings

Schema = dict[str, Any]
_DROPPED = {"title", "default", "format", "discriminator"}
_WHOLE = {"items", "additionalProperties", "patternProperties"}
"""Keywords whose values are not merged into."""


class _Converter:
    """Turns pydantic's schema with ``$defs`` into one with definitions under names of our own."""

    def __init__(self, models: dict[str, Schema], prefix: str) -> None:
        self._models = models
        self._prefix = prefix
        self.definitions: dict[str, Schema] = {}

    def convert(self, node: Any, *, complete: bool) -> Any:
        if isinstance(node, list):
            return [self.convert(item, complete=complete) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return self._reference(node["$ref"].rpartition("/")[2], complete=complete)
        found: Schema = {}
        for key, item in node.items():
            if key == "properties":
                found[key] = {k: self.convert(v, complete=complete) for k, v in item.items()}
            elif key == "oneOf":  # without what is required, several may match
                found["anyOf"] = self.convert(item, complete=complete)
            elif key not in _DROPPED and (key != "required" or complete):
                found[key] = self.convert(item, complete=complete or key in _WHOLE)
        return found

    def _reference(self, name: str, *, complete: bool) -> Schema:
        own = f"{self._prefix}{name}{'' if complete else 'Partial'}"
        if own not in self.definitions:
            self.definitions[own] = {}
            self.definitions[own] = self.convert(self._models[name], complete=complete)
        return {"$ref": f"#/definitions/{own}"}


def partial_schema(settings: type[AnySettings], prefix: str) -> tuple[Schema, dict[str, Schema]]:
    """Return the schema and the definitions that it refers to, whose names have the prefix."""
    whole = settings.model_json_schema()
    converter = _Converter(whole.pop("$defs", {}), prefix)
    return converter.convert(whole, complete=False), converter.definitions
