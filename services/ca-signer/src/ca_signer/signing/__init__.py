"""Everything that loads or uses an issuer's private key."""
