"""Rotation events and their audit records."""
