"""CRL and OCSP over plain HTTP."""
