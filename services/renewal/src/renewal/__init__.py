"""Renewal: when every certificate is due, and its rotation to the next one."""
