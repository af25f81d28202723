"""Texts that the code does not carry, from docs/descriptions.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).parents[1] / "descriptions.yaml"
DESCRIPTIONS: dict[str, Any] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
