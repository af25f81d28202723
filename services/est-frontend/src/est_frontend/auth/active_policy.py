"""The policy in force; it may be another one at the next request."""

from __future__ import annotations

from dataclasses import dataclass

from estcore.policy.document import PolicyDocument


@dataclass
class ActivePolicy:
    """The policy in force."""

    policy: PolicyDocument
