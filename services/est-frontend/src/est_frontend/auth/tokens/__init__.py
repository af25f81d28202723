"""OAuth2 access tokens: JWS, key sets, DPoP, validation."""
