"""Production probe: enroll, repeat, renew and verify in rounds, as a client and relying party."""
