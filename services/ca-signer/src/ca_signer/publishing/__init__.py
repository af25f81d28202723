"""Audit records, events and answers that ca-signer sends."""
