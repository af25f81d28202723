"""Audit records of est-frontend: queue, spool, delivery."""
