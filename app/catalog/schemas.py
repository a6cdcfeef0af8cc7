"""Listings on the wire."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field

from app.catalog.tables import Listing, ListingVersion, Price
from app.errors import InvalidValue
from app.visible import Prose, Title
from app.wire import Strict, unix

Micros = Annotated[int, Field(ge=0, le=10**12)]
Starter = Annotated[Prose, Field(min_length=1, max_length=300)]
Visibility = Literal["public", "unlisted", "private"]


class Example(Strict):
    """What a buyer may expect: a question and, perhaps, its answer."""

    input: Prose = Field(min_length=1, max_length=4_000)
    output: Prose | None = Field(default=None, max_length=8_000)


class Defaults(Strict):
    """Sampling that callers get unless they choose their own."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None


class PricesIn(Strict):
    """Micros; tokens per million. `subscription` and `free_tokens` are not offered yet."""

    access_micros: Micros = 0
    input_micros_per_million_tokens: Micros
    output_micros_per_million_tokens: Micros
    cached_input_micros_per_million_tokens: Micros | None = None
    free_tokens: Literal[0] = 0
    subscription: None = None


class PriceChange(PricesIn):
    effective_at: int | None = Field(default=None, ge=0, le=253_402_300_799)

    def moment(self) -> datetime | None:
        """None is at once; never in the past, for a price already charged cannot change."""
        if self.effective_at is None:
            return None
        moment = datetime.fromtimestamp(self.effective_at, UTC)
        if moment < datetime.now(UTC):
            raise InvalidValue("effective_at lies in the past.", param="effective_at")
        return moment


class VersionCreate(Strict):
    model: str = Field(min_length=1, max_length=300)
    system_prompt: str | None = Field(default=None, max_length=8_000)
    defaults: Defaults = Defaults()
    starters: list[Starter] = Field(default_factory=list, max_length=8)
    examples: list[Example] = Field(default_factory=list, max_length=10)


class ListingCreate(VersionCreate):
    name: str = Field(max_length=63)
    title: Title = Field(min_length=1, max_length=100)
    summary: Prose = Field(min_length=1, max_length=300)
    description: Prose = Field(default="", max_length=20_000)
    category: str = "other"
    tags: list[str] = Field(default_factory=list, max_length=20)
    license: str = "other"
    visibility: Visibility = "public"
    prices: PricesIn


class ListingChange(Strict):
    """What may change after publication; the model and its prices have rows of their own."""

    title: Title | None = Field(default=None, min_length=1, max_length=100)
    summary: Prose | None = Field(default=None, min_length=1, max_length=300)
    description: Prose | None = Field(default=None, max_length=20_000)
    category: str | None = None
    tags: list[str] | None = Field(default=None, max_length=20)
    license: str | None = None
    visibility: Visibility | None = None


class PriceOut(BaseModel):
    id: str
    object: str = "price"
    access_micros: int
    input_micros_per_million_tokens: int
    output_micros_per_million_tokens: int
    cached_input_micros_per_million_tokens: int | None
    free_tokens: int
    subscription: None = None
    effective_at: int

    @classmethod
    def of(cls, price: Price) -> Self:
        return cls(
            id=price.id,
            access_micros=price.access_micros,
            input_micros_per_million_tokens=price.input_micros_per_million_tokens,
            output_micros_per_million_tokens=price.output_micros_per_million_tokens,
            cached_input_micros_per_million_tokens=price.cached_input_micros_per_million_tokens,
            free_tokens=price.free_tokens,
            effective_at=unix(price.effective_at),
        )


class VersionOut(BaseModel):
    """`model` pins the version for callers; `variant`, `system_prompt` and `reasons` only its owner sees."""

    id: str
    object: str = "listing.version"
    number: int
    model: str
    status: str
    reasons: list[str]
    system_prompt: str | None
    defaults: dict[str, Any]
    starters: list[str]
    examples: list[dict[str, Any]]
    created_at: int
    published_at: int | None

    @classmethod
    def of(cls, version: ListingVersion, model: str, for_owner: bool) -> Self:
        return cls(
            id=version.id,
            number=version.number,
            model=f"{model}@{version.number}",
            status=version.status,
            reasons=version.reasons if for_owner else [],
            system_prompt=version.system_prompt if for_owner else None,
            defaults=version.defaults,
            starters=version.starters,
            examples=version.examples,
            created_at=unix(version.created_at),
            published_at=unix(version.published_at) if version.published_at else None,
        )


class ListingOut(BaseModel):
    """`model` is what callers name. `version` is the published number, null before the first."""

    id: str
    object: str = "listing"
    handle: str
    name: str
    model: str
    title: str
    summary: str
    description: str
    category: str
    tags: list[str]
    license: str
    base_model: str
    visibility: str
    status: str
    reasons: list[str]
    version: int | None
    system_prompt: str | None
    defaults: dict[str, Any]
    starters: list[str]
    examples: list[dict[str, Any]]
    prices: PriceOut
    rating: float | None
    reviews: int
    sales: int
    created_at: int

    @classmethod
    def of(
        cls, listing: Listing, handle: str, version: ListingVersion, price: Price, status: str, for_owner: bool
    ) -> Self:
        """`version`: the published one, else the latest."""
        return cls(
            id=listing.id,
            handle=handle,
            name=listing.name,
            model=f"{handle}/{listing.name}",
            title=listing.title,
            summary=listing.summary,
            description=listing.description,
            category=listing.category,
            tags=listing.tags,
            license=listing.license,
            base_model=listing.base_id,
            visibility=listing.visibility,
            status=status,
            reasons=version.reasons if for_owner else [],
            version=listing.published_version,
            system_prompt=version.system_prompt if for_owner else None,
            defaults=version.defaults,
            starters=version.starters,
            examples=version.examples,
            prices=PriceOut.of(price),
            rating=round(listing.rating_sum / listing.rating_count, 2) if listing.rating_count else None,
            reviews=listing.rating_count,
            sales=listing.sales_count,
            created_at=unix(listing.created_at),
        )


class Facet(BaseModel):
    value: str
    count: int


class ListingPage(BaseModel):
    """`last_id` is an opaque cursor for `after`; facets count within the present search."""

    object: str = "list"
    data: list[ListingOut]
    first_id: str | None
    last_id: str | None
    has_more: bool
    total: int
    facets: dict[str, list[Facet]]


class Category(BaseModel):
    id: str
    object: str = "category"
    title: str
    listings: int
