"""Client authentication: certificates, secrets, passwords, Digest, access tokens."""
