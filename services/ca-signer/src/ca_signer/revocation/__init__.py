"""Certificate status: revoke, publish, CRL, OCSP."""
