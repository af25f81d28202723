"""Where the sources of the clients lie that are written around foreign libraries."""

from __future__ import annotations

from pathlib import Path

CLIENTS = Path(__file__).parents[3] / "interop" / "clients"
