"""Audit: one writer per log, a Merkle tree over it, signed checkpoints, delivery to the SIEM."""
