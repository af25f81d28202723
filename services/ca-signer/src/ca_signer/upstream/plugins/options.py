"""Reads the options of a plug-in: strictly, like every setting."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from estcore.errors import ConfigurationError
from estcore.pki.profile import StrictModel

M = TypeVar("M", bound=StrictModel)


def read_options(model: type[M], options: dict[str, Any], name: str) -> M:
    """Return the options as ``model``.

    Raises:
        ConfigurationError: one line naming the plug-in, the first wrong place and why.
    """
    try:
        return model.model_validate(options)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(p) for p in first["loc"]) or "options"
        raise ConfigurationError(f"options of {name}: {place}: {first['msg'].lower()}") from exc
