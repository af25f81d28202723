"""The transparency log: RFC 9162 tree, signed checkpoints, offline verification. Pure."""
