"""Names as texts: what is written can be read, and nothing unseen is in it."""

from __future__ import annotations

import pytest
from cryptography import x509
from hypothesis import example, given
from hypothesis import strategies as st

from estcore.pki.names import LONG_NAMES, canonical_name, display_name, parse_name

values = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
shorts = st.sampled_from(["CN", "O", "OU", "L", "ST", "UID"])


@st.composite
def names(draw: st.DrawFn) -> x509.Name:
    rdns = draw(
        st.lists(st.dictionaries(shorts, values, min_size=1, max_size=3), min_size=1, max_size=4)
    )
    return x509.Name(
        [
            x509.RelativeDistinguishedName(
                [x509.NameAttribute(LONG_NAMES[short], value) for short, value in rdn.items()]
            )
            for rdn in rdns
        ]
    )


@given(names())
def test_what_is_displayed_is_read_as_the_same_name(name: x509.Name) -> None:
    assert canonical_name(parse_name(display_name(name))) == canonical_name(name)


@given(names())
@example(x509.Name([x509.NameAttribute(LONG_NAMES["CN"], "a\x1b[8mb\r\n\u202ec")]))
def test_nothing_that_a_terminal_carries_out_is_displayed(name: x509.Name) -> None:
    assert display_name(name).isprintable()
    assert canonical_name(name).isprintable()


def test_every_character_of_one_octet_is_displayed_and_read() -> None:
    for point in range(1, 256):
        name = x509.Name([x509.NameAttribute(LONG_NAMES["O"], f"a{chr(point)}b")])
        assert display_name(name).isprintable(), point
        read = parse_name(display_name(name))
        assert read.get_attributes_for_oid(LONG_NAMES["O"])[0].value == f"a{chr(point)}b"


@pytest.mark.parametrize(
    ("text", "organization"),
    [
        (r"CN=web,O=Clinic\, Inc.", "Clinic, Inc."),
        (r"O=A\+B\=C\\D", "A+B=C\\D"),
        (r"O=M\c3\bcnster", "Münster"),
        ("O=Clinic, CN=web", "Clinic"),
    ],
)
def test_a_name_is_read_with_its_escapes(text: str, organization: str) -> None:
    assert parse_name(text).get_attributes_for_oid(LONG_NAMES["O"])[0].value == organization


@pytest.mark.parametrize(
    "text", ["", "O", "O=", "X=1", "O=a,", "O=a++CN=b", r"O=a\x", "O=a\\", r"O=\ff"]
)
def test_what_is_no_name_is_one_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_name(text)
