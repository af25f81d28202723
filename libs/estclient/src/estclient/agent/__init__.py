"""The renewal agent: one service, one certificate, always valid."""
