"""X.509 without I/O: CSR, names, keys, profiles, TBS, lint, chains."""
