"""The process ca-signer-upstream: issuance by another CA. It loads no key of a CA."""
