"""Leaves as the database keeps them: deflated (RFC 1951), with a dictionary of what leaves share.

A leaf is canonical JSON of one to six kilobytes, of which most is the same in every leaf. Packed it
takes about a third: of the disk, of the WAL, of backups. What is hashed, signed, exported and
forwarded is the leaf itself. The column ``leaf`` holds it in records of before; ``LEAF`` is the SQL
expression of either, and ``unpack`` reads it.

The first octet of a packed leaf is the number of its dictionary. A dictionary never changes, since
every leaf that was packed with it needs it: a better one gets the next number.
"""

from __future__ import annotations

import zlib

LEAF = "coalesce(packed_leaf, convert_to(leaf, 'UTF8'), '')"
"""SQL: the octets that ``unpack`` takes, of a row of ``record``."""
_PLAIN = ord("{")
_CURRENT = 1
_WINDOW = -13
"""Raw deflate, 8 kB: the dictionary, and a leaf with many items behind it."""
_MAX_OCTETS = 4 * 1024 * 1024
_CERTIFICATE = (
    "MAoGCCqGSM49BAMCMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEMAwGA1UdEwEB/wQCMAAwDgYDVR0PAQH/BAQDAgeA"
    "MB0GA1UdJQQWMBQGCCsGAQUFBwMBBggrBgEFBQcDAjAdBgNVHQ4EFgQUMB8GA1UdIwQYMBaAFDAKBggqhkjOPQQDAgNI"
    "ADBFAiEA"
)
# What is rare comes first, what every leaf has last: near is cheaper than far.
_FIRST = (
    '"outcome":"failure","phase":"error","reason":"the request is ","reason_code":"request.'
    '"outcome":"failure","phase":"denied","reason_code":"auth.","severity":"warning"'
    '"severity":"error","severity":"critical","type":"human"},"auth_method":"console"'
    '"action":"audit.start","details":{"config_sha256":"'
    '"action":"operator.","action":"est.simpleenroll","action":"est.enroll"'
    '"action":"ca.crl","action":"certificate.revoke","action":"service.start"'
    '"instance":"est-frontend","service":"est-frontend"},"topic":"audit.refusal.est-frontend."}'
    '"instance":"audit","service":"audit"},"topic":"audit.issue.audit"}'
    '"auth_method":"bearer","auth_method":"basic","auth_method":"secret","subject":"secret:'
    '"successor_serial":"","proof":"mtls_seen"},"proof":"agent_ack"},"enrollment_correlation_id":"'
    '"action":"rotation.due","action":"rotation.activated","action":"rotation.deprecated"'
    '"action":"rotation.retired","action":"rotation.overlap"'
    '{"actor":{"subject":"renewal","type":"system"},"causation_id":"","correlation_id":"","details":'
    '{"attempt":1,"due_at":"+00:00","fence":0,"generation":2},"target":{"certificate_sha256":"",'
    '"issuance_id":"","issuer_id":"","label":"","not_after":"","not_before":"",'
    '"predecessor_serial":"","profile":"","rotation_id":"","serial":"","service":"","slot_id":"",'
    '"tenant":""}},'
    '"action":"renewal.scheduled","actor":{"subject":"renewal","type":"system"},"correlation_id":"",'
    '"items":[{"actor":{"subject":"renewal","type":"system"},"causation_id":"","correlation_id":"",'
    '"details":{"due_at":"+00:00","generation":1},"target":{"issuance_id":"","issuer_id":"issuing",'
    '"profile":"","serial":"","service":"","slot_id":"","tenant":""}},{"actor":'
    '"instance":"renewal","service":"renewal"},"topic":"audit.issue.renewal"}'
    '"key_algorithm":"rsa-2048","key_algorithm":"ec-p384","tls_cipher":"TLS_AES_128_GCM_SHA256",'
    '"operation":"simplereenroll"},"tls_version":"TLSv1.2","binding":"tls-unique",'
    '"tbs_sha256":"","san":["dns:",'
    '{"log_index":,"record":{"action":"certificate.issue","actor":{"auth_method":"certificate",'
    '"certificate_serial":"01","rule":"","subject":"certificate:/CN=","type":"service"},'
    '"causation_id":"","correlation_id":"","details":{"enrollment_id":"","frontend":"default/'
    'est-frontend","operation":"simpleenroll"},"occurred_at":"Z","origin":{"peer":"","tls_cipher":'
    '"TLS_AES_256_GCM_SHA384","tls_version":"TLSv1.3","user_agent":""},"outcome":"unknown","phase":'
    '"intent","outcome":"success","phase":"outcome","producer":{"boot_id":"","instance":"ca-signer",'
    '"service":"ca-signer"},"record_id":"","schema_version":1,"severity":"notice","severity":"info",'
    '"target":{"certificate":"MII' + _CERTIFICATE + '","certificate_sha256":"","csr_sha256":"",'
    '"issuance_id":"","issued_at":"Z","issuer_id":"issuing","key_algorithm":"ec-p256","label":"",'
    '"not_after":"Z","not_before":"Z","policy_version":"","profile":"","profile_version":"@1#",'
    '"request_id":"","san":[],"serial":"01","service":"","slot_id":"","spki_sha256":"","subject":'
    '"CN=","tenant":""}},"recorded_at":"Z","topic":"audit.issue.ca-signer"}'
).encode()
_DICTIONARIES = {1: _FIRST}


def pack(leaf: str) -> bytes:
    """Return a leaf as the database keeps it."""
    deflate = zlib.compressobj(1, zlib.DEFLATED, _WINDOW, zdict=_DICTIONARIES[_CURRENT])
    return bytes([_CURRENT]) + deflate.compress(leaf.encode()) + deflate.flush()


def unpack(octets: bytes) -> str:
    """Return the leaf that the database has; an empty one where nothing can be read.

    Only who changed the database leaves such octets. An empty leaf has not the hash that was
    signed, and is reported with its index like any other that was changed.
    """
    try:
        if octets[0] == _PLAIN:
            return octets.decode()
        inflate = zlib.decompressobj(_WINDOW, zdict=_DICTIONARIES[octets[0]])
        leaf = inflate.decompress(octets[1:], _MAX_OCTETS)
        return leaf.decode() if inflate.eof and not inflate.unused_data else ""
    except (IndexError, KeyError, UnicodeDecodeError, zlib.error):
        return ""
