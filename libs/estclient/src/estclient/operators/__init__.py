"""Signed commands of operators, sent over NATS."""
