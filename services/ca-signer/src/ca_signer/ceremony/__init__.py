"""Offline ceremonies: make a CA, request or import an issuer's certificate, cross-certify roots."""
