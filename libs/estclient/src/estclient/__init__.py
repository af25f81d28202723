"""EST client, renewal agent and operator tool.

``Agent`` keeps one certificate fresh inside a program of your own: ``Agent(settings, hook=…)`` and
``work(stop)``. ``AgentSettings`` are its settings, ``ESTClient`` the client below it. They are
imported when they are used, so that a command loads only what it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from estclient.agent.agent import Agent, run_agent
    from estclient.agent.settings import AgentSettings
    from estclient.est.client import ESTClient

__all__ = ["Agent", "AgentSettings", "ESTClient", "run_agent"]
_PLACES = {
    "Agent": "estclient.agent.agent",
    "AgentSettings": "estclient.agent.settings",
    "ESTClient": "estclient.est.client",
    "run_agent": "estclient.agent.agent",
}


def __getattr__(name: str) -> Any:
    """Import what the package exports when it is first used."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(_PLACES[name]), name)
