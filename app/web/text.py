"""How the pages write money, time and markdown. Pure."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

from app.dollars import MICROS, in_dollars, usd

CARD_TAGS = {"p", "br", "hr", "strong", "em", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a"} | {
    *("h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td")
}
MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


def cents(micros: int) -> str:
    """Rounded down to whole cents, for a glance."""
    return usd(micros // 10_000 * 10_000)


def signed_usd(micros: int) -> str:
    return f"+{usd(micros)}" if micros > 0 else usd(micros)


def dollars(micros: int) -> str:
    """As a form's field shows it: `0.5`."""
    return format((Decimal(micros) / MICROS).normalize(), "f")


def when(moment: datetime | int | None) -> Markup:
    """A `<time>` in UTC; takes unix seconds too."""
    if moment is None:
        return Markup("")
    at = datetime.fromtimestamp(moment, UTC) if isinstance(moment, int) else moment.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(), f"{at.day} {at:%b %Y, %H:%M} UTC")


def beside(message: str, name: str) -> str:
    """A refusal as it stands next to its field: the field need not be named again."""
    return in_dollars(message.removeprefix(f"{name}: "))


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


@lru_cache(maxsize=256)
def quoted(text: str) -> str:
    """As a string literal that JSON and Python both read; escaping for HTML is the template's."""
    return json.dumps(text, ensure_ascii=False)


def markdown(text: str) -> Markup:
    """A seller's card as inert HTML: no raw HTML, images, styles or ids; its headings lie below the page's own."""
    tokens = MARKDOWN.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 2, 6)}"
    html = MARKDOWN.renderer.render(tokens, MARKDOWN.options, {})
    clean = nh3.clean(
        html,
        tags=CARD_TAGS,
        attributes={"a": {"href"}},
        url_schemes={"http", "https", "mailto"},
        link_rel="nofollow noopener noreferrer",
        url_relative="deny",
    )
    return Markup(clean)  # noqa: S704 (nh3 has just cleaned it)
