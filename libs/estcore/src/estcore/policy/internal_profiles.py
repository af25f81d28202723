"""Profiles of the CA's own certificates: no front end may request them."""

from __future__ import annotations

OPERATOR_PROFILE = "operator"
OCSP_RESPONDER_PROFILE = "ocsp-responder"
KEY_GENERATOR_PROFILE = "key-generator"
INTERNAL_PROFILES = (OPERATOR_PROFILE, OCSP_RESPONDER_PROFILE, KEY_GENERATOR_PROFILE)
"""Fleet operations (bulk revocation, counting a rollover) leave these certificates out."""
