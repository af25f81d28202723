"""Signed commands of operators: receive, authorize, execute, answer."""
