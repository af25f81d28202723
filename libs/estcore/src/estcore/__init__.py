"""Shared floors of the EST suite. See docs/architecture.md for who may import whom."""
