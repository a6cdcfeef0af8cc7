"""How many listings a search has found, and how many of them have each category, tag, base and licence."""

from typing import Any

from sqlalchemy import Select, Text, func, literal, select, union_all
from sqlalchemy.orm import Session

from app.catalog.schemas import Facet
from app.catalog.tables import Listing

COUNTED = (Listing.category, Listing.tags, Listing.base_id, Listing.license)
MAX_VALUES = 20
TOTAL = "total"


def count(tx: Session, matching: Select[*tuple[Any, ...]]) -> tuple[int, dict[str, list[Facet]]]:
    """`matching` selects COUNTED; it runs once for all counts. Each facet has its most frequent values, best first."""
    found = matching.cte("found")
    columns = {
        "category": found.c.category,
        "tag": func.unnest(found.c.tags),
        "base_model": found.c.base_id,
        "license": found.c.license,
    }
    parts: list[Select[*tuple[Any, ...]]] = [
        select(literal(TOTAL, Text), literal("", Text), func.count()).select_from(found)
    ]
    for name, column in columns.items():
        value = column.label("value")
        counted = select(literal(name, Text), value, func.count()).group_by(value)
        parts.append(counted.order_by(func.count().desc(), value).limit(MAX_VALUES))
    facets: dict[str, list[Facet]] = {name: [] for name in (TOTAL, *columns)}
    for name, value, number in tx.execute(union_all(*parts)):
        facets[name].append(Facet(value=value, count=number))
    for values in facets.values():
        values.sort(key=lambda facet: (-facet.count, facet.value))
    return facets.pop(TOTAL)[0].count, facets
