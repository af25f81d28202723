"""Types, limits and defaults of model fields, as operators read them."""

from __future__ import annotations

import datetime as dt
import inspect
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from estcore.pki.durations import format_duration

_NAME = "^[a-z0-9-]{1,63}$"


def value_text(value: Any) -> str:
    """Return a default as operators read it."""
    if value is None or value is PydanticUndefined:
        return "none"
    if isinstance(value, dt.timedelta):
        return f"`{format_duration(value)}`"
    if isinstance(value, tuple):
        return ", ".join(value_text(v) for v in value) or "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, BaseModel):
        return "see its fields"
    return f"`{value}`"


def type_text(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """Return a type as operators read it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_text(arguments[0], arguments[1:])
    if origin in {typing.Union, types.UnionType}:
        return ", ".join(type_text(a, metadata) for a in arguments if a is not type(None))
    if origin in {tuple, dict}:
        inner = type_text(arguments[0] if origin is tuple else arguments[1])
        return f"{'list' if origin is tuple else 'mapping'} of {inner}"
    choices = arguments if origin is Literal else ()
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        choices = tuple(member.value for member in annotation)
    if choices:
        return " \\| ".join(f"`{choice}`" for choice in choices)
    if any(str(getattr(c, "pattern", "")) == _NAME for m in metadata for c in _parts(m)):
        return "name"
    return _plain(annotation) + _limits(metadata)


def _parts(metadata: Any) -> list[Any]:
    inner = getattr(metadata, "metadata", None)
    return inner if isinstance(inner, list) else [metadata]


def _plain(annotation: Any) -> str:
    names = {
        str: "text",
        int: "integer",
        float: "number",
        bool: "true or false",
        bytes: "DER, base64",
        Path: "path",
        dt.timedelta: "duration",
        dt.datetime: "time",
    }
    if annotation in names:
        return names[annotation]
    return annotation.__name__ if inspect.isclass(annotation) else "JSON value"


def _limits(metadata: list[Any] | tuple[Any, ...]) -> str:
    limits = {}
    for item in metadata:
        for constraint in _parts(item):
            for name in ("ge", "gt", "le", "lt"):
                value = getattr(constraint, name, None)
                if value is not None:
                    limits[name] = f"{value:g}" if isinstance(value, float) else str(value)
    low = f"{limits['ge']} ≤" if "ge" in limits else f"{limits['gt']} <" if "gt" in limits else ""
    high = f"≤ {limits['le']}" if "le" in limits else f"< {limits['lt']}" if "lt" in limits else ""
    if low and high:
        return f", {low[:-2]} to {high[2:]}" if low.endswith("≤") else f", {low} … {high}"
    return f", at least {low[:-2]}" if low else ""
