"""cert-manager issuer and Kubernetes signer for any EST server."""
