"""Weak public keys whose kind and size look right (pure).

What the CA/Browser Forum's Baseline Requirements ask of a CA in section 6.1.1.3 (ROCA, close
primes) and 6.1.6 (odd modulus, no small factor, no power of a prime), and Ed25519 points of
small order, for which anybody can make signatures. An RSA key costs well under a millisecond,
an EC key nothing: a curve's point is checked by ``cryptography`` when it is read.

Not here: the list of keys of CVE-2008-0166 (Debian's OpenSSL of 2006 to 2008). It is megabytes
of data that no package brings along.
"""

from __future__ import annotations

import math

from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from estcore.errors import WeakKey

_FERMAT_ROUNDS = 100
_ROCA_PRIMES = 39
"""The 39 primes up to 167 are in the generator's constant M for keys of every size."""
_POWERS = (3, 5, 7, 11, 13)


def check_strength(key: CertificatePublicKeyTypes) -> None:
    """Refuse a key whose private half can be worked out, or is not needed to sign.

    Does not look at kind, size, exponent and encoding: ``estcore.pki.keys`` does.

    Raises:
        WeakKey: naming what is wrong with it.
    """
    if isinstance(key, rsa.RSAPublicKey):
        check_modulus(key.public_numbers().n)
    elif isinstance(key, ed25519.Ed25519PublicKey):
        _check_point(key.public_bytes_raw())


def check_modulus(n: int) -> None:
    """Refuse an RSA modulus that can be factored.

    Raises:
        WeakKey: naming how.
    """
    if n % 2 == 0 or math.gcd(n, _SMALL_PRODUCT) != 1:
        raise WeakKey("the RSA modulus has a factor below 752", code="key.small_factor")
    if all(n % prime in residues for prime, residues in _ROCA):
        raise WeakKey("the RSA key is of a chip with CVE-2017-15361 (ROCA)", code="key.roca")
    if _primes_are_close(n):
        raise WeakKey("the primes of the RSA key are too close", code="key.close_primes")
    if any(_root(n, k) ** k == n for k in _POWERS):
        raise WeakKey("the RSA modulus is a power of one prime", code="key.prime_power")


def _primes_are_close(n: int) -> bool:
    """Try Fermat's factorization: n = a² - b² for an ``a`` right above the square root."""
    a = math.isqrt(n)
    if a * a == n:
        return True
    a += 1
    square = a * a - n
    for _ in range(_FERMAT_ROUNDS):
        # Five of six numbers are no squares modulo 256; the root of the rest is costly.
        if square & 0xFF in _SQUARES and math.isqrt(square) ** 2 == square:
            return True
        square += 2 * a + 1
        a += 1
    return False


def _root(n: int, k: int) -> int:
    """Return the whole ``k``-th root of n, rounded down, by Newton's method."""
    # A first guess above the root saves most of the steps: 40 bits, which a float surely has.
    shift = max(0, n.bit_length() // k - 40)
    x = (int((n >> shift * k) ** (1 / k)) + 2) << shift
    while True:
        better = ((k - 1) * x + n // x ** (k - 1)) // k
        if better >= x:
            return x
        x = better


def _check_point(encoded: bytes) -> None:
    """Refuse the points whose order divides eight, in every encoding (RFC 8032 section 5.1.3)."""
    y = int.from_bytes(encoded, "little") & _SIGN_OFF
    if y % _P in _SMALL_ORDER:
        raise WeakKey("the Ed25519 point has a small order", code="key.small_order")


def _primes(limit: int) -> list[int]:
    return [n for n in range(2, limit) if all(n % d for d in range(2, math.isqrt(n) + 1))]


def _generated(prime: int) -> frozenset[int]:
    """Return the powers of 65537 modulo a prime.

    Nemec et al., "The Return of Coppersmith's Attack" (CCS 2017): the primes of such a key are
    k·M + (65537^a mod M), M a product of small primes. So the modulus, too, is a power of 65537
    modulo each of these; one of other making is with a chance of less than 2^-27.
    """
    powers, power = {1}, 65537 % prime
    while power not in powers:
        powers.add(power)
        power = power * 65537 % prime
    return frozenset(powers)


_PRIMES = _primes(752)
_SMALL_PRODUCT = math.prod(_PRIMES)
_ROCA = [
    # The smallest groups first: they turn other keys away at once.
    *sorted(
        ((p, _generated(p)) for p in _PRIMES[1:_ROCA_PRIMES]),
        key=lambda group: len(group[1]) / group[0],
    )
]
_SQUARES = frozenset(n * n & 0xFF for n in range(256))

# Ed25519: -x² + y² = 1 + d·x²·y² modulo P.
_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
_SIGN_OFF = 2**255 - 1


def _square_root(value: int) -> int | None:
    """Return a square root modulo P, which is 5 modulo 8; None where there is none."""
    root = pow(value, (_P + 3) // 8, _P)
    if root * root % _P != value % _P:
        root = root * pow(2, (_P - 1) // 4, _P) % _P
    return root if root * root % _P == value % _P else None


def _small_order() -> frozenset[int]:
    """Return the y of the points of order 1, 2, 4 and 8.

    Doubling a point of order 8 gives y = 0, which needs y² = -x²; with the curve's equation
    that is d·y⁴ + 2·y² - 1 = 0.
    """
    ordinates = {1, _P - 1, 0}
    middle = _square_root(1 + _D)
    assert middle is not None  # noqa: S101 - a fact of the curve
    for sign in (1, -1):
        y = _square_root((sign * middle - 1) * pow(_D, -1, _P))
        if y is not None:
            ordinates |= {y, _P - y}
    return frozenset(ordinates)


_SMALL_ORDER = _small_order()
