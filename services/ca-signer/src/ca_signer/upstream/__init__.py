"""The process ca-signer-upstream: issuance by an upstream CA. It loads no key of a CA."""
