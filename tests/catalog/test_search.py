"""Finding a listing: words, near misses, Chinese, filters, orders, pages, facets."""

import secrets

import pytest
from starlette.testclient import TestClient

from app.billing.purchase import buy
from app.catalog.search_text import bigrams, characters
from app.catalog.tables import Listing
from app.database import transaction
from app.reviews.review import write_review
from tests.conftest import Services, Signed
from tests.factories import new_account, new_listing, new_member


@pytest.fixture
def shelf(services: Services) -> Signed:
    """A seller with four listings: support (free), code, 客服, an unlisted one."""
    with transaction() as tx:
        seller = new_member(tx)
        new_listing(
            tx,
            seller.account_id,
            name="support",
            title="Customer support agent",
            summary="Answers questions about parcels and refunds.",
            category="customer-service",
            tags=["support", "parcels"],
            license="mit",
            access=0,
        )
        new_listing(
            tx,
            seller.account_id,
            name="pyhelp",
            title="Python debugger",
            summary="Explains tracebacks.",
            description="Finds the bug in your program and explains refunds of memory.",
            category="coding",
            tags=["python", "support"],
            access=900,
        )
        new_listing(
            tx,
            seller.account_id,
            name="kefu",
            title="智能客服助手",
            summary="回答顾客关于退款的问题",
            category="customer-service",
            access=500,
        )
        new_listing(tx, seller.account_id, name="hidden", title="Customer secrets", visibility="unlisted")
    return seller


def names(client: TestClient, shelf: Signed, query: str) -> list[str]:
    answer = client.get(f"/v1/listings?handle={shelf.handle}&{query}")
    assert answer.status_code == 200, answer.text
    return [listing["name"] for listing in answer.json()["data"]]


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ("customer support", ["support"]),
        ("refund", ["support", "pyhelp"]),
        ("costumer suport", ["support"]),
        ("pyton debuger", ["pyhelp"]),
        ("cutsomer parcel", ["support"]),
        ("debug", ["pyhelp"]),
        ("pylon", []),
        ("客服", ["kefu"]),
        ("退款", ["kefu"]),
        ("退", ["kefu"]),
        ("服客", []),
        ("zebra", []),
        ("'; DROP TABLE listings; --", []),
        ("& | ! ( ) : * <->", []),
        ("the", []),
    ],
)
def test_words_near_misses_and_chinese_are_found(client: TestClient, shelf: Signed, q: str, found: list[str]) -> None:
    answer = client.get("/v1/listings", params={"q": q, "handle": shelf.handle}).json()
    assert [listing["name"] for listing in answer["data"]] == found
    assert answer["total"] == len(found)


def test_the_word_itself_comes_before_its_beginning_and_that_before_a_near_miss(
    client: TestClient, services: Services
) -> None:
    """Likeness alone would put the near misses first: they repeat the word's trigrams more often or more closely."""
    with transaction() as tx:
        seller = new_member(tx)
        # The card says it once, below a hundred other words; the others say something like it in their titles.
        card = f"{'It does many other things well. ' * 20}It knows postgres."
        new_listing(tx, seller.account_id, name="exact", title="Database help", description=card)
        new_listing(tx, seller.account_id, name="begins", title="Ask about postgresdb", summary="Tables and rows.")
        new_listing(tx, seller.account_id, name="near", title="Postgras", summary="Posgres postgers postgras.")
    assert names(client, seller, "q=postgres") == ["exact", "begins", "near"]
    paged = client.get(f"/v1/listings?handle={seller.handle}&q=postgres&limit=1").json()
    rest = names(client, seller, f"q=postgres&after={paged['last_id']}")
    assert rest == ["begins", "near"]


def test_filters_narrow(client: TestClient, shelf: Signed) -> None:
    assert set(names(client, shelf, "")) == {"support", "pyhelp", "kefu"}
    assert set(names(client, shelf, "category=customer-service")) == {"support", "kefu"}
    assert set(names(client, shelf, "tag=Support")) == {"support", "pyhelp"}
    assert names(client, shelf, "license=mit") == ["support"]
    assert names(client, shelf, "price=free") == ["support"]
    assert set(names(client, shelf, "price=paid")) == {"pyhelp", "kefu"}
    assert names(client, shelf, "base_model=none") == []


def test_facets_count_what_matches(client: TestClient, shelf: Signed) -> None:
    answer = client.get(f"/v1/listings?handle={shelf.handle}&limit=1").json()
    assert answer["total"] == 3
    assert answer["facets"]["category"] == [
        {"value": "customer-service", "count": 2},
        {"value": "coding", "count": 1},
    ]
    assert answer["facets"]["tag"][0] == {"value": "support", "count": 2}
    assert {facet["value"]: facet["count"] for facet in answer["facets"]["license"]} == {"mit": 1, "other": 2}


def test_orders(client: TestClient, shelf: Signed) -> None:
    with transaction() as tx:
        buyer = new_account(tx, 10_000).id
        for name, rating in (("support", 2), ("kefu", 5)):
            listing = tx.query(Listing).filter_by(account_id=shelf.account_id, name=name).one()
            buy(tx, buyer, listing, None)
            write_review(tx, buyer, listing, rating, "")
        buy(tx, new_account(tx, 10_000).id, listing, None)
    assert names(client, shelf, "sort=newest") == ["kefu", "pyhelp", "support"]
    assert names(client, shelf, "sort=price") == ["support", "kefu", "pyhelp"]
    assert names(client, shelf, "sort=rating") == ["kefu", "support", "pyhelp"]
    assert names(client, shelf, "sort=popular") == ["kefu", "support", "pyhelp"]
    assert names(client, shelf, "sort=trending")[0] == "kefu"


@pytest.mark.parametrize("sort", ["newest", "price", "rating", "popular", "trending", "relevance"])
def test_pages_meet_without_gap_or_overlap(client: TestClient, shelf: Signed, sort: str) -> None:
    whole, paged, after = names(client, shelf, f"sort={sort}"), [], ""
    for _ in range(3):
        page = client.get(f"/v1/listings?handle={shelf.handle}&sort={sort}&limit=1{after}").json()
        paged += [listing["name"] for listing in page["data"]]
        after = f"&after={page['last_id']}"
    assert paged == whole
    assert not page["has_more"]


def test_a_forged_cursor_is_refused(client: TestClient, shelf: Signed) -> None:
    good = client.get(f"/v1/listings?handle={shelf.handle}&sort=newest&limit=1").json()["last_id"]
    assert client.get(f"/v1/listings?sort=newest&after={good}").status_code == 200
    flipped = good[:-1] + ("A" if good[-1] != "A" else "B")
    for query in (
        "after=x",
        "after=",
        "after=%E5%AE%A2",
        f"sort=newest&after={flipped}x",
        f"sort=price&after={good}",
        "limit=0",
        "limit=-1",
        "limit=1e9",
    ):
        answer = client.get(f"/v1/listings?{query}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_cursor"), query


def test_unknown_orders_are_refused(client: TestClient) -> None:
    for query in ("sort=best", "price=cheap", "q=" + "x" * 201):
        answer = client.get(f"/v1/listings?{query}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value"), query


def test_a_changed_listing_is_found_by_its_new_words(client: TestClient, shelf: Signed) -> None:
    word = secrets.token_hex(6)
    body = {"title": f"Bot {word}", "tags": []}
    assert client.patch(f"/v1/listings/{shelf.handle}/support", json=body, headers=shelf.headers).status_code == 200
    assert names(client, shelf, f"q={word}") == ["support"]
    assert names(client, shelf, "q=agent") == []


def test_categories_count_what_is_on_sale(client: TestClient, shelf: Signed) -> None:
    categories = {row["id"]: row["listings"] for row in client.get("/v1/categories").json()["data"]}
    assert next(iter(categories)) == "customer-service"
    assert categories["customer-service"] >= 2
    assert categories["coding"] >= 1


def test_text_without_spaces_is_cut_into_pairs_and_characters() -> None:
    assert bigrams("去北京大学 now 好") == "去北 北京 京大 大学 好"
    assert characters("北京 ok 好") == "北 京 好"
