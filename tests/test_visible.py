"""What strangers read cannot hide or turn round: neither in titles nor, for direction, in longer texts."""

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from app.database import transaction
from app.visible import check_prose, check_title
from tests.factories import listing_body, new_listing, new_member, new_variant

UNSEEN = ["\u202e", "\u2066", "\u200b", "\u200d", "\ufeff", "\u00ad", "\u2028", "\n", "\x07", "\u3164", "\U000e0041"]


@pytest.mark.parametrize("char", UNSEEN)
def test_a_title_with_an_unseen_character_is_refused(char: str) -> None:
    for text in (f"Tech{char} support", f"{char}Tech support", char):
        with pytest.raises(ValueError, match="visible"):
            check_title(text)


@pytest.mark.parametrize("text", ["智能客服助手", "Aide à l'écriture 🎈", "مساعد", "नमस्ते", "C++ & <b>"])
def test_titles_of_all_scripts_are_welcome(text: str) -> None:
    assert check_title(text) == text


def test_prose_keeps_joiners_but_never_turns_round() -> None:
    for text in ("می\u200cخواهم", "👩\u200d🚀", "two\nlines\u200e"):
        assert check_prose(text) == text
    for char in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069":
        with pytest.raises(ValueError, match="direction"):
            check_prose(f"safe {char}exe.txt")


@given(st.text(min_size=1))
def test_a_title_that_passes_is_seen_whole(text: str) -> None:
    try:
        check_title(text)
    except ValueError:
        return
    assert not {unicodedata.category(char) for char in text} & {"Cc", "Cf", "Zl", "Zp"}


@pytest.mark.parametrize("field", ["title", "summary", "description"])
def test_a_listing_that_turns_text_round_is_neither_made_nor_changed(client: TestClient, field: str) -> None:
    with transaction() as tx:
        seller = new_member(tx)
        model = new_variant(tx, seller.account_id).model
        listing = new_listing(tx, seller.account_id)
    turned: dict[str, Any] = {field: "Support \u202egpj"}
    made = client.post("/v1/listings", json=listing_body(model, **turned), headers=seller.headers)
    changed = client.patch(f"/v1/listings/{seller.handle}/{listing.name}", json=turned, headers=seller.headers)
    for answer in (made, changed):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", field)
