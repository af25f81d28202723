"""Builders and judges for tests: movable clock, certificate factory."""
