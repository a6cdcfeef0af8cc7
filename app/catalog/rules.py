"""Pure decisions about listings: names, categories, licences, tags."""

import re
from collections.abc import Sequence

from app.errors import InvalidValue

NAME = re.compile(r"[a-z0-9](?:[._-]?[a-z0-9]){0,62}")
TAG = re.compile(r"[\w][\w .+-]{0,39}")
MAX_TAGS = 10

CATEGORIES = {
    "customer-service": "Customer service",
    "content": "Content",
    "coding": "Coding",
    "education": "Education",
    "research": "Research",
    "entertainment": "Entertainment",
    "other": "Other",
}
LICENSES = frozenset(
    [
        "apache-2.0",
        "mit",
        "bsd-3-clause",
        "cc-by-4.0",
        "cc-by-sa-4.0",
        "cc-by-nc-4.0",
        "cc0-1.0",
        "gemma",
        "llama3",
        "other",
    ]
)


def check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise InvalidValue(
            "A name has up to 63 lower-case letters and digits, with single dots, dashes or underscores between.",
            param="name",
        )
    return name


def check_category(category: str) -> str:
    if category not in CATEGORIES:
        raise InvalidValue(f"category: choose from {', '.join(CATEGORIES)}.", param="category")
    return category


def check_license(license: str) -> str:
    if license.lower() not in LICENSES:
        raise InvalidValue(f"license: choose from {', '.join(sorted(LICENSES))}.", param="license")
    return license.lower()


def check_tags(tags: Sequence[str]) -> list[str]:
    """Lower case, without repeats."""
    clean = list(dict.fromkeys(tag.strip().lower() for tag in tags))
    if len(clean) > MAX_TAGS or not all(TAG.fullmatch(tag) for tag in clean):
        raise InvalidValue(f"Up to {MAX_TAGS} tags of up to 40 letters and digits.", param="tags")
    return clean


def overall_status(delisted: bool, published: bool, latest: str) -> str:
    """What a listing is, seen as one word: its latest version's state until one is published."""
    if delisted:
        return "delisted"
    return "published" if published else latest
