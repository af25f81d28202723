"""Managed renewal: ca-signer renews what renewal finds due, and clients fetch it."""
