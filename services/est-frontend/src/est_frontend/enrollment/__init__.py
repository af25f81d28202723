"""Enrollment operations: authenticate, read, refuse early, ask ca-signer, answer."""
