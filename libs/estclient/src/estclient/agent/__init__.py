"""The renewal agent: certificates of one host, always valid."""
