"""What a policy costs by its number of rules, one rule for each service (pure)."""

from __future__ import annotations

import time
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from estcore.policy.document import PolicyDocument

SIZES = (100, 1_000, 10_000)
_REPEATED = 20


class PolicyCost(BaseModel):
    """CPU time for one size of policy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: int
    octets: int
    """Of the file."""
    read_s: float
    """To parse the YAML and build the model, at each start and after each change."""
    owner_ms: float
    """To find the rules of an owner, which ca-signer does for every re-enrollment."""


def document(rules: int) -> dict[str, Any]:
    """Return a policy with one rule for each of that many services."""
    label = {
        "issuer": "issuing",
        "profiles": ["service-mtls"],
        "authentication": ["certificate", "secret"],
    }
    return {
        "default_label": "services",
        "labels": {"services": label},
        "rules": [
            {
                "name": f"service-{n}",
                "principal": {"secret": f"service-{n}"},
                "owner": {"tenant": "clinic", "service": f"service-{n}"},
                "labels": ["services"],
                "profiles": ["service-mtls"],
                "names": {"dns": [f"service-{n}.clinic.example"]},
            }
            for n in range(rules)
        ],
    }


def measure(rules: int) -> PolicyCost:
    """Measure one size."""
    text = yaml.safe_dump(document(rules))
    began = time.process_time()
    policy = PolicyDocument.model_validate(yaml.safe_load(text))
    read_s = time.process_time() - began
    middle = f"service-{rules // 2}"
    policy.rules_of_owner("clinic", middle)  # what is computed once per rule is not counted
    began = time.process_time()
    for _ in range(_REPEATED):
        policy.rules_of_owner("clinic", middle)
    owner_ms = (time.process_time() - began) * 1000 / _REPEATED
    return PolicyCost(
        rules=rules, octets=len(text), read_s=round(read_s, 3), owner_ms=round(owner_ms, 4)
    )
