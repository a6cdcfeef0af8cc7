"""The front page: what is on sale, found by words, category, price and order."""

from dataclasses import replace
from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, field_validator
from starlette.responses import RedirectResponse, Response

from app.catalog.find import count_public
from app.catalog.search import Search, Sort, search
from app.dependencies import Transaction
from app.web.static_files import static_url
from app.web.visitors import AnyVisitor

router = APIRouter()
PAGE_SIZE = 24
ORDERS = {
    "": "Best match",
    "trending": "Trending",
    "newest": "Newest",
    "rating": "Best rated",
    "price": "Lowest price",
    "popular": "Most bought",
}


class Browse(BaseModel):
    """The address of a search; a form sends what was left alone as an empty string."""

    q: str = Field(default="", max_length=200)
    category: str | None = Field(default=None, max_length=200)
    tag: str | None = Field(default=None, max_length=200)
    base_model: str | None = Field(default=None, max_length=200)
    price: Literal["free", "paid"] | None = None
    handle: str | None = Field(default=None, max_length=200)
    sort: Sort | None = None
    after: str | None = Field(default=None, max_length=400)

    @field_validator("category", "tag", "base_model", "price", "handle", "sort", "after", mode="before")
    @classmethod
    def blank_is_none(cls, value: object) -> object:
        return value or None

    def search(self) -> Search:
        fields = self.model_dump(exclude={"after"})
        return Search(**fields | {"q": self.q.strip()})

    def link(self, **changes: str | None) -> str:
        """The same search with some of it changed, from its first page."""
        fields = self.model_dump(exclude={"after"}) | changes
        query = urlencode({name: value for name, value in fields.items() if value})
        return f"/?{query}" if query else "/"


@router.get("/")
def front(visitor: AnyVisitor, tx: Transaction, browse: Annotated[Browse, Query()]) -> Response:
    wanted = browse.search()
    found = search(tx, wanted, PAGE_SIZE, browse.after)
    everywhere = wanted == Search(sort=wanted.sort, category=wanted.category)
    if everywhere:
        counts = count_public(tx)
    else:
        any_category = found if wanted.category is None else search(tx, replace(wanted, category=None), 1, None)
        counts = {facet.value: facet.count for facet in any_category.facets["category"]}
    filtered = wanted != Search(sort=wanted.sort)
    return visitor.show(
        "storefront", browse=browse, found=found, counts=counts, filtered=filtered, orders=ORDERS, everywhere=everywhere
    )


@router.get("/favicon.ico")
def favicon() -> Response:
    return RedirectResponse(static_url("icon.svg"), 308)
