"""Access tokens (OAuth2): keys of their issuers, validation, binding to a key of the client."""
