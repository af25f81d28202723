"""Fault points for test builds.

``ESTSUITE_FAULT=signer.5.committed:exit:3`` kills the process (exit code 137, nothing flushed)
the third time that point is passed; ``:sleep:2`` sleeps two seconds every time. More than one
is separated by commas. Unset, nothing happens.
"""

from __future__ import annotations

import os
import time
from collections import Counter

_passed: Counter[str] = Counter()
_plan: dict[str, tuple[str, float]] = {}
for _item in filter(None, os.environ.get("ESTSUITE_FAULT", "").split(",")):
    _name, _action, _number = _item.split(":")
    _plan[_name] = (_action, float(_number))


def hit(name: str) -> None:
    """Carry out what was planned for this point."""
    planned = _plan.get(name)
    if planned is None:
        return
    action, number = planned
    _passed[name] += 1
    if action == "exit" and _passed[name] == int(number):
        os._exit(137)
    if action == "sleep":
        time.sleep(number)  # a stalled process, not a stalled task: blocking is the point
