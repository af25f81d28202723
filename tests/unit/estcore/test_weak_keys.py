"""Keys that can be broken, made as broken generators make them, and refused."""

from __future__ import annotations

import functools
import math
import random
import time
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import assume, given
from hypothesis import strategies as st

from estcore.errors import MalformedRequest, RequestRejected, WeakKey
from estcore.pki.csr import parse_csr
from estcore.pki.keys import key_algorithm
from estcore.pki.weak_keys import check_modulus, check_strength

SOME_PRIMES = [n for n in range(2, 2000) if all(n % d for d in range(2, math.isqrt(n) + 1))]
SUBJECT = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "weak")])
P25519 = 2**255 - 19
D25519 = -121665 * pow(121666, -1, P25519) % P25519


def is_prime(n: int) -> bool:
    """Miller and Rabin, with bases enough for numbers that are not chosen to deceive it."""
    if n < 2 or any(n % p == 0 for p in SOME_PRIMES):
        return n in SOME_PRIMES
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19):
        x = pow(base, odd, n)
        if x in {1, n - 1}:
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def next_prime(n: int) -> int:
    n |= 1
    while not is_prime(n):
        n += 2
    return n


@functools.cache
def random_prime(bits: int, which: int = 0) -> int:
    """A prime whose product with another one has the full size; one for each ``which``."""
    del which
    if bits >= 512:
        return rsa.generate_private_key(65537, 2 * bits).private_numbers().p
    return next_prime(random.SystemRandom().getrandbits(bits) | (3 << (bits - 2)))


def roca_prime(bits: int, dice: random.Random) -> int:
    """k·M + (65537^a mod M), M the product of the first 126 primes (keys of 2048 bits)."""
    small = [n for n in range(2, 702) if is_prime(n)]
    assert len(small) == 126
    m = math.prod(small)
    while True:
        k = dice.getrandbits(bits - m.bit_length()) | (1 << (bits - m.bit_length() - 1))
        candidate = k * m + pow(65537, dice.getrandbits(200), m)
        if is_prime(candidate):
            return candidate


def code_of(n: int) -> str:
    with pytest.raises(WeakKey) as refused:
        check_modulus(n)
    return refused.value.code


def csr_with(key: rsa.RSAPrivateKey) -> bytes:
    csr = x509.CertificateSigningRequestBuilder(SUBJECT).sign(key, SHA256())
    return csr.public_bytes(Encoding.DER)


def rsa_key(p: int, q: int, e: int = 65537) -> rsa.RSAPrivateKey:
    d = pow(e, -1, math.lcm(p - 1, q - 1))
    numbers = rsa.RSAPrivateNumbers(
        p=p,
        q=q,
        d=d,
        dmp1=d % (p - 1),
        dmq1=d % (q - 1),
        iqmp=pow(q, -1, p),
        public_numbers=rsa.RSAPublicNumbers(e, p * q),
    )
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)


def test_N3_a_csr_with_close_primes_is_refused() -> None:
    """BR 6.1.1.3: keys "which can be factored within 100 rounds using Fermat's method"."""
    p = random_prime(1024)
    q = next_prime(p + 2)
    with pytest.raises(WeakKey) as refused:
        parse_csr(csr_with(rsa_key(p, q)))
    assert refused.value.code == "key.close_primes"


def test_N3_fermat_looks_a_hundred_rounds_far_and_no_further() -> None:
    dice = random.Random(2)
    middle = dice.getrandbits(1024) | (3 << 1022) | 1
    # n = a² - b²: round r is the first when the whole root of n is a - r.
    for rounds, found in ((1, True), (99, True), (100, True), (102, False)):
        b = math.isqrt(2 * middle * rounds)
        n = middle * middle - b * b
        while middle - math.isqrt(n) != rounds or n % 2 == 0:
            b -= 1
            n = middle * middle - b * b
        if math.gcd(n, math.prod(q for q in range(2, 752) if is_prime(q))) != 1:
            n = odd_difference(middle, rounds)
        if found:
            assert code_of(n) == "key.close_primes", rounds
        else:
            check_modulus(n)


def odd_difference(middle: int, rounds: int) -> int:
    """a² - b² without small factors, found first in that round."""
    small = math.prod(q for q in range(2, 752) if is_prime(q))
    b = math.isqrt(2 * middle * rounds)
    while True:
        b -= 1
        n = middle * middle - b * b
        if middle - math.isqrt(n) == rounds and math.gcd(n, small) == 1:
            return n


def test_N3_roca_a_csr_with_primes_of_the_published_form_is_refused() -> None:
    """CVE-2017-15361."""
    dice = random.Random(3)
    p, q = roca_prime(1024, dice), roca_prime(1024, dice)
    key = rsa_key(p, q)
    if key.key_size % 8:
        pytest.fail("the dice gave a modulus of another size")
    with pytest.raises(WeakKey) as refused:
        parse_csr(csr_with(key))
    assert refused.value.code == "key.roca"


def test_N3_one_prime_of_that_form_and_one_of_another_is_no_roca_key() -> None:
    dice = random.Random(4)
    check_modulus(roca_prime(1024, dice) * random_prime(1024))


@pytest.mark.parametrize("factor", [2, 3, 5, 251, 743, 751])
def test_N3_a_small_factor_is_found(factor: int) -> None:
    """BR 6.1.6: "an odd number, not the power of a prime, and have no factors smaller than 752"."""
    assert code_of(factor * random_prime(2048)) == "key.small_factor"


def test_N3_the_first_prime_above_751_is_no_small_factor() -> None:
    check_modulus(757 * random_prime(2039))


@pytest.mark.parametrize(
    ("power", "code"),
    [
        (2, "key.close_primes"),
        (3, "key.prime_power"),
        (4, "key.close_primes"),
        (5, "key.prime_power"),
        (7, "key.prime_power"),
    ],
)
def test_N3_the_power_of_a_prime_is_found(power: int, code: str) -> None:
    assert code_of(random_prime(2048 // power) ** power) == code


@pytest.mark.parametrize("exponent", [3, 17, 65539, 2**32 + 1])
def test_N3_an_exponent_other_than_65537_is_refused(exponent: int) -> None:
    """BR 6.1.6 wants 65537 at least and allows up to 2^256 - 1; we take the one everybody uses."""
    p, q = random_prime(1024), random_prime(1024, 1)
    key = rsa.RSAPublicNumbers(exponent, p * q).public_key()
    with pytest.raises(WeakKey) as refused:
        key_algorithm(key)
    assert refused.value.code == "key.exponent"


@pytest.mark.parametrize("exponent", [1, 2, 65536])
def test_N3_exponents_that_are_none_never_become_a_key(exponent: int) -> None:
    p, q = random_prime(1024), random_prime(1024, 1)
    with pytest.raises(ValueError, match="e must be"):
        rsa.RSAPublicNumbers(exponent, p * q).public_key()


@pytest.mark.parametrize("size", [2048, 3072, 4096])
def test_a_key_as_openssl_makes_it_is_good_and_costs_less_than_a_millisecond(size: int) -> None:
    key = rsa.generate_private_key(65537, size).public_key()
    check_strength(key)
    assert best_of(lambda: check_strength(key)) < 0.001 * slowness()


def test_an_ec_key_costs_next_to_nothing() -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    assert best_of(lambda: check_strength(key)) < 0.000_05 * slowness()


def best_of(action: Callable[[], None]) -> float:
    best = math.inf
    for _ in range(20):
        started = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - started)
    return best


def slowness() -> float:
    """How slow this machine is now, 1 or more: a modular power of 2048 bits takes about 20 ms."""
    n = (1 << 2048) - 1
    started = time.perf_counter()
    pow(3, n - 2, n)
    return max(1.0, (time.perf_counter() - started) / 0.02)


@given(st.integers(min_value=2**1023, max_value=2**1024 - 1), st.integers(1, 2**40))
def test_a_product_of_near_numbers_is_refused_one_way_or_another(a: int, distance: int) -> None:
    a |= 1
    assume(math.gcd(a, a + 2 * distance) < a)
    with pytest.raises(WeakKey):
        check_modulus(a * (a + 2 * distance))


@given(st.integers(min_value=3, max_value=2**300), st.sampled_from((3, 5, 7, 11, 13)))
def test_every_power_is_refused(base: int, power: int) -> None:
    with pytest.raises(WeakKey):
        check_modulus(base**power)


# Points.


def on_edwards(x: int, y: int) -> bool:
    return (-x * x + y * y - 1 - D25519 * x * x * y * y) % P25519 == 0


def doubled(point: tuple[int, int]) -> tuple[int, int]:
    x, y = point
    shared = D25519 * x * x * y * y
    return (
        2 * x * y * pow(1 + shared, -1, P25519) % P25519,
        (y * y + x * x) * pow(1 - shared, -1, P25519) % P25519,
    )


def edwards_point(y: int) -> tuple[int, int]:
    value = (y * y - 1) * pow(D25519 * y * y + 1, -1, P25519) % P25519
    x = pow(value, (P25519 + 3) // 8, P25519)
    if (x * x - value) % P25519:
        x = x * pow(2, (P25519 - 1) // 4, P25519) % P25519
    assert on_edwards(x, y)
    return x, y


SMALL_Y = (
    0,
    1,
    P25519 - 1,
    # The y of a point of order 8, as in the test vectors of many libraries.
    int.from_bytes(
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
    ),
    int.from_bytes(
        bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"
    ),
)


@pytest.mark.parametrize("y", SMALL_Y)
@pytest.mark.parametrize("sign", [0, 1])
def test_N3_ed25519_points_of_small_order_are_refused_in_every_encoding(y: int, sign: int) -> None:
    point = edwards_point(y)
    for _ in range(3):
        point = doubled(point)
    assert point == (0, 1)  # its order divides eight
    encodings = [y, *([y + P25519] if y + P25519 < 2**255 else [])]
    for value in encodings:
        encoded = (value | sign << 255).to_bytes(32, "little")
        with pytest.raises(WeakKey) as refused:
            check_strength(ed25519.Ed25519PublicKey.from_public_bytes(encoded))
        assert refused.value.code == "key.small_order"


def test_N3_anybody_can_sign_for_a_point_of_small_order_so_the_csr_is_refused() -> None:
    """With the neutral point as key, R = S·B is a signature of everything."""
    honest = ed25519.Ed25519PrivateKey.generate()
    template = x509.CertificateSigningRequestBuilder(SUBJECT).sign(honest, None)
    weak = (1).to_bytes(32, "little")
    der = template.public_bytes(Encoding.DER)
    tbs = template.tbs_certrequest_bytes
    forged_tbs = tbs.replace(honest.public_key().public_bytes_raw(), weak)
    # S = 0, R the neutral point: the equation S·B = R + h·A holds for every message.
    forged = der.replace(tbs, forged_tbs).replace(template.signature, weak + bytes(32))
    assert x509.load_der_x509_csr(forged).is_signature_valid
    with pytest.raises(WeakKey) as refused:
        parse_csr(forged)
    assert refused.value.code == "key.small_order"


@given(st.binary(min_size=32, max_size=32))
def test_an_honest_ed25519_key_is_good(seed: bytes) -> None:
    check_strength(ed25519.Ed25519PrivateKey.from_private_bytes(seed).public_key())


def ec_csr() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder(SUBJECT).sign(key, SHA256())
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return csr.public_bytes(Encoding.DER), point


def refusal(der: bytes) -> RequestRejected:
    with pytest.raises(RequestRejected) as refused:
        parse_csr(der)
    return refused.value


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda p: p[:-1] + bytes([p[-1] ^ 1]), id="not on the curve"),
        pytest.param(lambda p: b"\x04" + bytes(64), id="zero"),
        pytest.param(lambda p: b"\x04" + b"\xff" * 64, id="coordinates beyond the field"),
        pytest.param(lambda p: b"\x05" + p[1:], id="form of no point"),
    ],
)
def test_N3_an_ec_point_that_is_none_is_refused_when_it_is_read(
    change: Callable[[bytes], bytes],
) -> None:
    der, point = ec_csr()
    error = refusal(der.replace(point, change(point)))
    assert isinstance(error, MalformedRequest)
    assert error.code == "csr.malformed"


def test_N3_a_hybrid_point_is_refused() -> None:
    der, point = ec_csr()
    hybrid = bytes([0x06 + (point[-1] & 1)]) + point[1:]
    assert refusal(der.replace(point, hybrid)).code in {"csr.malformed", "key.encoding"}


def test_N3_the_point_at_infinity_is_refused() -> None:
    der, point = ec_csr()
    csr = x509.load_der_x509_csr(der)
    spki = csr.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    # SEQUENCE { AlgorithmIdentifier, BIT STRING 00 }: one octet instead of 65.
    identifier = spki[2 : -len(point) - 3]
    infinity = b"\x30" + bytes([len(identifier) + 4]) + identifier + b"\x03\x02\x00\x00"
    info = csr.tbs_certrequest_bytes.replace(spki, infinity)
    info = (
        b"\x30"
        + bytes([len(info) - 2 if info[1] < 0x80 else len(info) - 3])
        + info[2 if info[1] < 0x80 else 3 :]
    )
    rest = der[der.index(csr.tbs_certrequest_bytes) + len(csr.tbs_certrequest_bytes) :]
    body = info + rest
    whole = (
        b"\x30\x81" + bytes([len(body)]) + body
        if len(body) > 127
        else b"\x30" + bytes([len(body)]) + body
    )
    assert isinstance(refusal(whole), MalformedRequest | WeakKey)
