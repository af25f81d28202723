"""A witness of audit logs: cosigns checkpoints that continue what it has seen before."""
