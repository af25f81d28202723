"""Lint of every certificate and CRL in the ledger (check-store)."""
