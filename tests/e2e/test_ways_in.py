"""Who asks, over the wire: HTTP authentication, certificates of other CAs, registrars."""

from __future__ import annotations

import asyncio
import base64
import copy
import hashlib
import re
import shutil
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
)
from cryptography.x509.oid import NameOID

from estcore.est.http_digest import verifier
from estdev.local import admin_get
from estsuite_testing.e2e_stack import (
    certificate_in,
    make_csr,
)
from estsuite_testing.raw_client import BASE, Answer, b64
from estsuite_testing.ways import PASSWORD, World, basic, device

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


# HTTP authentication.


async def test_L17_a_persons_password_enrolls(world: World) -> None:
    path = f"{BASE}/people/simpleenroll"
    answer = await world.client.request(
        "POST", path, b64(make_csr("dev-alice")[1]), auth=basic("alice", PASSWORD)
    )
    assert answer.status == 200, answer.text
    wrong = await world.client.request(
        "POST", path, b64(make_csr("dev-alice")[1]), auth=basic("alice", "wrong")
    )
    assert wrong.status == 401
    assert "auth.password" in wrong.text
    assert wrong.headers["WWW-Authenticate"] == 'Basic realm="est"'


async def test_L6_a_secret_without_a_name_is_enough(world: World) -> None:
    answer = await world.client.request(
        "POST",
        f"{BASE}/simpleenroll",
        b64(make_csr("dev-pin")[1]),
        auth=basic("", world.stack.secret),
    )
    assert answer.status == 200, answer.text


async def test_L2_basic_comes_first_and_each_scheme_has_its_line(world: World) -> None:
    answer = await world.client.request(
        "POST", f"{BASE}/mixed/simpleenroll", b64(make_csr("dev-x")[1])
    )
    assert answer.status == 401
    lines = [x for x in answer.lines if x.startswith("WWW-Authenticate: ")]
    assert [line.split(" ")[1] for line in lines] == ["Basic", "Digest"]
    assert lines[1].endswith('qop="auth", opaque="est"')


def curl(world: World, *arguments: str, label: str = "", operation: str = "simpleenroll") -> str:
    """The status, after the body, of a request by curl."""
    port = world.stack.layout.ports.est
    middle = f"/{label}" if label else ""
    done = subprocess.run(
        [
            shutil.which("curl") or "curl",
            *("-sS", "--cacert", str(world.stack.layout.root_file), "-w", "\n%{http_code}"),
            *("--resolve", f"localhost:{port}:127.0.0.1"),
            *arguments,
            f"https://localhost:{port}{BASE}{middle}/{operation}",
        ],
        capture_output=True,
        timeout=30,
        check=True,
    )
    return done.stdout.decode()


async def test_L3_K4_curl_enrolls_with_digest_and_a_nonce_is_good_once(world: World) -> None:
    body = world.folder / "digest.b64"
    body.write_bytes(b64(make_csr("dev-digest")[1]))
    common = ("-H", "Content-Type: application/pkcs10", "--data-binary", f"@{body}")
    out = await asyncio.to_thread(
        curl, world, "--digest", "-u", f"alice:{PASSWORD}", *common, label="legacy"
    )
    assert out.endswith("\n200"), out
    wrong = await asyncio.to_thread(
        curl, world, "--digest", "-u", "alice:wrong", *common, label="legacy"
    )
    assert wrong.endswith("\n401"), wrong


def digest_answer(
    challenge: str, path: str, *, user: str = "alice", password: str = PASSWORD, nc: str = "1"
) -> str:
    nonce = challenge.split('nonce="')[1].split('"')[0]
    ha1 = verifier(user, "est", password, "MD5")
    ha2 = hashlib.md5(f"POST:{path}".encode(), usedforsecurity=False).hexdigest()
    count = nc.zfill(8)
    text = f"{ha1}:{nonce}:{count}:abc:auth:{ha2}"
    response = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
    return (
        f'Digest username="{user}", realm="est", nonce="{nonce}", uri="{path}", '
        f'response="{response}", qop=auth, nc={count}, cnonce="abc", algorithm=MD5'
    )


async def test_L5_a_replayed_digest_answer_is_refused(world: World) -> None:
    path = f"{BASE}/legacy/simpleenroll"
    csr = b64(make_csr("dev-replay")[1])
    first = await world.client.request("POST", path, csr)
    challenge = first.headers["WWW-Authenticate"]
    answer = digest_answer(challenge, path)
    assert (await world.client.request("POST", path, csr, auth=answer)).status == 200
    again = await world.client.request("POST", path, csr, auth=answer)
    assert again.status == 401
    assert "auth.replayed" in again.text
    counted = digest_answer(challenge, path, nc="2")
    assert (await world.client.request("POST", path, csr, auth=counted)).status == 200


async def test_L4_libest_leaves_the_label_out_of_the_digest_uri(world: World) -> None:
    path = f"{BASE}/legacy/simpleenroll"
    csr = b64(make_csr("dev-libest")[1])
    challenge = (await world.client.request("POST", path, csr)).headers["WWW-Authenticate"]
    answer = digest_answer(challenge, f"{BASE}/simpleenroll")
    assert (await world.client.request("POST", path, csr, auth=answer)).status == 200
    other = digest_answer(challenge, f"{BASE}/simplereenroll", nc="3")
    assert (await world.client.request("POST", path, csr, auth=other)).status == 401


async def test_L9_a_label_can_need_certificate_and_secret(world: World) -> None:
    path = f"{BASE}/both/simpleenroll"
    csr = b64(make_csr("dev-both")[1])
    context = await world.enrolled("dev-both-cert")
    ask = world.client.request
    assert (await ask("POST", path, csr, auth=world.basic)).status == 401
    assert (await ask("POST", path, csr, context=context)).status == 401
    assert (await ask("POST", path, csr, context=context, auth=world.basic)).status == 200
    # Renewal wants both as well.
    renew, own = f"{BASE}/both/simplereenroll", b64(make_csr("dev-both-cert")[1])
    assert (await ask("POST", renew, own, context=context)).status == 401
    renewed = await ask("POST", renew, own, context=context, auth=world.basic)
    assert renewed.status == 200, renewed.text


async def test_L7_wrong_passwords_are_slowed_down(world: World) -> None:
    answers = [
        await world.client.request(
            "POST", f"{BASE}/people/simpleenroll", b64(make_csr("dev-x")[1]), auth=basic("eve", "x")
        )
        for _ in range(8)
    ]
    statuses = [answer.status for answer in answers]
    assert statuses[:5] == [401] * 5
    assert 429 in statuses
    assert int(answers[-1].headers["Retry-After"]) >= 1
    good = await world.client.request(
        "POST",
        f"{BASE}/people/simpleenroll",
        b64(make_csr("dev-alice2")[1]),
        auth=basic("alice", PASSWORD),
    )
    assert good.status == 200, "another account is not slowed down"


async def test_L12_the_challenge_names_a_bad_token(world: World) -> None:
    path = f"{BASE}/tokens/simpleenroll"
    csr = b64(make_csr("dev-token")[1])
    plain = await world.client.request("POST", path, csr)
    assert (plain.status, plain.headers["WWW-Authenticate"]) == (401, 'Bearer realm="est"')
    for token in ("nonsense", "a.b.c", base64.b64encode(b"x.y.z").decode()):
        answer = await world.client.request("POST", path, csr, auth=f"Bearer {token}")
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="est", error="invalid_token"'
        assert token not in answer.text
    other = await world.client.request("POST", path, csr, auth=world.basic)
    assert (other.status, "auth.scheme" in other.text) == (401, True)


async def hashes(world: World) -> float:
    """Return how many slow hashes the front end has computed."""
    port = world.stack.suite.services["est-frontend"].admin_port
    text = await admin_get(port, "/metrics")
    (count,) = re.findall(r"^est_frontend_password_hashes_total ([0-9.]+)$", text, re.MULTILINE)
    return float(count)


def comparable(answer: Answer) -> tuple[int, dict[str, str], str]:
    """Return an answer without what is new in each: date, correlation id, nonce."""
    fields = {
        name: re.sub(r'nonce="[0-9a-f]+"', "nonce", value)
        for name, value in answer.headers.items()
        if name not in {"date", "x-correlation-id"}
    }
    return answer.status, fields, answer.text


@pytest.mark.parametrize(
    ("label", "slow"), [("services", 0), ("people", 1), ("mixed", 1), ("either", 1)]
)
async def test_no_label_says_by_basic_which_names_exist(
    world: World, label: str, slow: int
) -> None:
    """The same octets and as many slow hashes, for every name that is known or not."""
    path, csr = f"{BASE}/{label}/simpleenroll", b64(make_csr("dev-guess")[1])
    client = copy.copy(world.client)
    client.source, client.address = f"127.0.1.{10 + slow + len(label)}", "127.0.0.1"
    seen = []
    # A user with a password, the id of a secret, a user with neither, an unknown name, no name at all.
    for name in ("alice", "load", "bob", "no-such-user", ""):
        before = await hashes(world)
        answer = await client.request("POST", path, csr, auth=basic(name, "wrong"))
        assert await hashes(world) - before == slow, name
        seen.append(comparable(answer))
    assert seen[0][0] == 401
    assert all(answer == seen[0] for answer in seen)


@pytest.mark.parametrize("label", ["legacy", "mixed"])
async def test_no_label_says_by_digest_which_names_exist(world: World, label: str) -> None:
    path, csr = f"{BASE}/{label}/simpleenroll", b64(make_csr("dev-guess")[1])
    seen = []
    for name in ("alice", "bob", "load", "no-such-user"):
        client = copy.copy(world.client)
        client.source, client.address = f"127.0.2.{len(label)}", "127.0.0.1"
        before = await hashes(world)
        challenge = (await client.request("POST", path, csr)).headers["WWW-Authenticate"]
        answer = digest_answer(challenge, path, user=name, password="wrong")
        seen.append(comparable(await client.request("POST", path, csr, auth=answer)))
        assert await hashes(world) == before
    assert "auth.password" in seen[0][2]
    assert all(answer == seen[0] for answer in seen)


async def test_right_secrets_and_passwords_enroll_where_a_label_takes_both(world: World) -> None:
    path = f"{BASE}/either/simpleenroll"
    for number, auth in enumerate([world.basic, basic("alice", PASSWORD)]):
        answer = await world.client.request(
            "POST", path, b64(make_csr(f"dev-either-{number}")[1]), auth=auth
        )
        assert answer.status == 200, answer.text


async def test_thirty_guesses_at_once_try_no_more_than_those_that_are_free(world: World) -> None:
    path, csr = f"{BASE}/people/simpleenroll", b64(make_csr("dev-x")[1])
    client = copy.copy(world.client)
    client.source, client.address = "127.0.3.1", "127.0.0.1"
    before = await hashes(world)
    answers = await asyncio.gather(
        *(client.request("POST", path, csr, auth=basic("carol", f"{n}")) for n in range(30))
    )
    assert await hashes(world) - before <= 6
    assert {answer.status for answer in answers} == {401, 429}


@pytest.mark.parametrize("body", [b"nonsense", b64(make_csr("not-allowed")[1])])
async def test_a_digest_answer_of_a_refused_request_is_spent(world: World, body: bytes) -> None:
    """Refused by the front end, before the signer's ledger could remember it."""
    path = f"{BASE}/legacy/simpleenroll"
    challenge = (await world.client.request("POST", path, body)).headers["WWW-Authenticate"]
    answer = digest_answer(challenge, path)
    refused = await world.client.request("POST", path, body, auth=answer)
    assert refused.status in {400, 403}, refused.text
    csr = b64(make_csr("dev-after-refusal")[1])
    replayed = await world.client.request("POST", path, csr, auth=answer)
    assert (replayed.status, "auth.replayed" in replayed.text) == (401, True)


# Certificates of other CAs.


async def test_K8_a_makers_device_gets_its_own_name_and_no_other(world: World) -> None:
    context = world.write("pump-1", device("pump-1", world.maker))
    path = f"{BASE}/devices/simpleenroll"
    ask = world.client.request
    answer = await ask("POST", path, b64(make_csr("pump-1")[1]), context=context)
    assert answer.status == 200, answer.text
    other = await ask("POST", path, b64(make_csr("pump-2")[1]), context=context)
    assert (other.status, "policy.subject" in other.text) == (403, True)
    stranger = world.write("valve-1", device("valve-1", world.maker))
    refused = await ask("POST", path, b64(make_csr("valve-1")[1]), context=stranger)
    assert (refused.status, "policy.no_rule" in refused.text) == (403, True)
    # Its new certificate renews itself, with the name it has and no other.
    key, csr = make_csr("pump-1")
    first = await ask("POST", path, b64(csr), context=context)
    ours = world.write("pump-1-ours", (certificate_in(first.body), key))
    for name, status in (("pump-1", 200), ("pump-2", 403)):
        again = await ask(
            "POST", f"{BASE}/devices/simplereenroll", b64(make_csr(name)[1]), context=ours
        )
        assert again.status == status, again.text
    # The maker's does not open other labels, and it cannot be renewed here.
    other_address = await ask(
        "POST", f"{BASE}/simpleenroll", b64(make_csr("x")[1]), context=context
    )
    assert other_address.status == 401
    renewal = await ask(
        "POST", f"{BASE}/devices/simplereenroll", b64(make_csr("pump-1")[1]), context=context
    )
    assert (renewal.status, "auth.certificate_foreign" in renewal.text) == (403, True)


async def test_N2_a_makers_identity_becomes_one_of_ours_and_is_renewed_with_it(
    world: World,
) -> None:
    """IDevID to LDevID: the profile makes the names, the maker's certificate says which."""
    ask, path = world.client.request, f"{BASE}/identities"
    theirs = world.write("idevid", device("4711", world.maker, NameOID.SERIAL_NUMBER))
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder(
        x509.Name(
            [
                x509.NameAttribute(NameOID.SERIAL_NUMBER, "4711"),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Whatever the factory wrote"),
            ]
        )
    ).sign(key, SHA256())
    answer = await ask("POST", f"{path}/simpleenroll", b64(csr.public_bytes(Encoding.DER)),
                       context=theirs)  # fmt: skip
    assert answer.status == 200, answer.text
    ours = certificate_in(answer.body)
    assert ours.subject.rfc4514_string() == "2.5.4.5=4711,OU=pumps,O=Clinic"
    san = ours.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert [name.value for name in san.value] == ["urn:device:4711"]
    again = x509.CertificateSigningRequestBuilder(ours.subject).add_extension(
        san.value, critical=False
    )
    renewed = await ask(
        "POST",
        f"{path}/simplereenroll",
        b64(again.sign(key, SHA256()).public_bytes(Encoding.DER)),
        context=world.write("ldevid", (ours, key)),
    )
    assert renewed.status == 200, renewed.text
    assert certificate_in(renewed.body).subject == ours.subject
    other = x509.CertificateSigningRequestBuilder(
        x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, "4712")])
    ).sign(key, SHA256())
    refused = await ask("POST", f"{path}/simpleenroll", b64(other.public_bytes(Encoding.DER)),
                        context=theirs)  # fmt: skip
    assert (refused.status, "policy.subject" in refused.text) == (403, True)


# Registration authorities.


async def test_M11_M13_M14_F9_a_registrar_enrolls_and_renews_for_others_within_its_scope(
    world: World,
) -> None:
    key, csr = make_csr("registrar")
    answer = await world.client.request(
        "POST",
        f"{BASE}/registrars/simpleenroll",
        b64(csr),
        auth=basic("registrar", world.secrets["registrar"]),
    )
    assert answer.status == 200, answer.text
    leaf = certificate_in(answer.body)
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28") in usage
    context = world.write("registrar", (leaf, key))
    ask = world.client.request
    enroll, renew = f"{BASE}/wards/simpleenroll", f"{BASE}/wards/simplereenroll"
    nothing = await ask("POST", renew, b64(make_csr("bed-1")[1]), context=context)
    assert (nothing.status, "registrar.nothing" in nothing.text) == (403, True)
    first = await ask("POST", enroll, b64(make_csr("bed-1")[1]), context=context)
    assert first.status == 200, first.text
    # M14: the predecessor is the subject's, not the registrar's own certificate.
    for _ in range(2):
        renewed = await ask("POST", renew, b64(make_csr("bed-1")[1]), context=context)
        assert renewed.status == 200, renewed.text
    ledger = await world.stack.ledger()
    slots = [row["slot_id"] for row in ledger if row["service"] == "ward"]
    assert len(slots) == 3
    assert len(set(slots)) == 1
    outside = await ask("POST", enroll, b64(make_csr("dev-other")[1]), context=context)
    assert (outside.status, "policy.subject" in outside.text) == (403, True)
    second = await ask("POST", enroll, b64(make_csr("bed-1")[1]), context=context)
    assert second.status == 200, second.text
    ambiguous = await ask("POST", renew, b64(make_csr("bed-1")[1]), context=context)
    assert (ambiguous.status, "registrar.ambiguous" in ambiguous.text) == (409, True)


async def test_M12_a_rule_without_a_certificate_of_profile_ra_gives_no_rights(
    world: World,
) -> None:
    context = await world.enrolled("dev-impostor")
    for operation in ("simpleenroll", "simplereenroll"):
        answer = await world.client.request(
            "POST", f"{BASE}/wards/{operation}", b64(make_csr("bed-9")[1]), context=context
        )
        assert answer.status == 403, answer.text
