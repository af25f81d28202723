"""Fixtures: what ``prepare`` makes with real paths, and what kustomize renders."""

from estsuite_testing.deployment import prepared, root

__all__ = ["prepared", "root"]
