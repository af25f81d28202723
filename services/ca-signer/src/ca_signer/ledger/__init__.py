"""The ledger's tables and every statement on them by subject."""
