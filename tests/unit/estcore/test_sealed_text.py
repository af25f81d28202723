"""Text sealed for one recipient: only its key opens it, and only as it was sealed."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey

from estcore.errors import MalformedRequest
from estcore.pki.sealed_text import MAX_RECIPIENT, RecipientKey, seal

KEY, OTHER = RecipientKey(), RecipientKey()


@given(st.text(max_size=200))
def test_what_is_sealed_is_opened_by_its_key_alone(text: str) -> None:
    sealed = seal(text, KEY.public)
    assert KEY.open(sealed) == text
    with pytest.raises(MalformedRequest) as refused:
        OTHER.open(sealed)
    assert refused.value.code == "sealed.unreadable"


@given(st.data())
def test_every_changed_character_is_refused(data: st.DataObject) -> None:
    sealed = seal("secret", KEY.public)
    place = data.draw(st.integers(0, len(sealed) - 1))
    other = data.draw(st.sampled_from("AB_9.-~é").filter(lambda c: c != sealed[place]))
    changed = sealed[:place] + other + sealed[place + 1 :]
    try:
        assert KEY.open(changed) == "secret"  # unused bits at the end of a base64url part
    except MalformedRequest as exc:
        assert exc.code == "sealed.unreadable"
    else:
        head, tail = sealed[: place + 1].rpartition(".")[2], sealed[place + 1 :]
        assert tail[:1] in {"", "."}, head


@given(st.one_of(st.text(max_size=300), st.binary(max_size=200).map(lambda b: b.decode("latin-1"))))
def test_anything_else_is_no_recipient_and_opens_nothing(text: str) -> None:
    with pytest.raises(MalformedRequest) as refused:
        seal("x", text)
    assert refused.value.code == "sealed.recipient"
    with pytest.raises(MalformedRequest):
        KEY.open(text)


@given(
    st.fixed_dictionaries(
        {
            "kty": st.sampled_from(["EC", "oct", "OKP", "RSA", 1, None]),
            "crv": st.sampled_from(["P-256", "P-384", "secp256k1", []]),
            "x": st.one_of(st.text(max_size=50), st.integers(), st.none()),
            "y": st.one_of(st.text(max_size=50), st.integers(), st.none()),
        }
    )
)
def test_a_key_that_is_none_is_refused(members: dict[str, object]) -> None:
    with pytest.raises(MalformedRequest) as refused:
        seal("x", json.dumps(members))
    assert refused.value.code == "sealed.recipient"


def test_other_curves_and_private_keys_are_refused() -> None:
    other = ECKey.import_key(ec.generate_private_key(ec.SECP384R1())).as_dict(private=False)
    private = ECKey.import_key(ec.generate_private_key(ec.SECP256R1())).as_dict(private=True)
    for members in (other, private):
        with pytest.raises(MalformedRequest):
            seal("x", json.dumps(members))


def test_the_form_is_small_and_says_how_it_is_sealed() -> None:
    assert len(KEY.public) <= MAX_RECIPIENT
    header = seal("x", KEY.public).split(".")[0]
    read = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    assert (read["alg"], read["enc"]) == ("ECDH-ES+A256KW", "A256GCM")
