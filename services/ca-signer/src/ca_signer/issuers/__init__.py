"""Issuers, their generations and the rollover between them, without a key."""
