"""Fixtures: what ``prepare`` makes with real paths, and what kustomize renders."""

from estsuite_testing.deployment import base, dev, prepared, prod, rendered, root

__all__ = ["base", "dev", "prepared", "prod", "rendered", "root"]
