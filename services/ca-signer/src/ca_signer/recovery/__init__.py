"""Detect a stale ledger and complete a restored one."""
