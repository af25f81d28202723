"""Fixtures: what ``prepare`` makes with real paths, and what kustomize renders."""

from estsuite_testing.deployment import context, prepared, root

__all__ = ["context", "prepared", "root"]
