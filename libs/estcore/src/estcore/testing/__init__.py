"""Helpers for tests: a movable clock, a certificate factory."""
