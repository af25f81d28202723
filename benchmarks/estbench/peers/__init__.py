"""Servers that the suite is compared with."""
