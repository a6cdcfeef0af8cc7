"""Misspelt searches: trigrams find the candidates by their index, edit distance decides.

Trigrams alone miss "costumer" for "customer": one swap of letters breaks most of a short word's.
"""

from sqlalchemy import ColumnElement, and_, exists, func, literal, select
from sqlalchemy.orm import Session

from app.catalog.tables import Listing

# Shares of common trigrams: worth a closer look, and surely the same word.
CANDIDATE, SAME_WORD = 0.2, 0.6
# Up to this many letters, two wrong ones make another word.
SHORT_WORD = 5
MAX_WORDS, MAX_WORD = 8, 60


def admit_candidates(tx: Session) -> None:
    """For this transaction: how alike is worth a closer look. The operator `<%` takes it from a setting only."""
    tx.execute(select(func.set_config("pg_trgm.word_similarity_threshold", str(CANDIDATE), True)))


def misspelt(q: str) -> ColumnElement[bool]:
    """Every word of `q` is part of a word of the listing, or one or two letters away from one."""
    return and_(*[near_word(word) for word in words_of(q)])


def beginnings(q: str) -> ColumnElement[bool]:
    """Every word of `q` begins a word of the listing."""
    spaced = literal(" ").concat(Listing.search_text)
    return and_(*[func.strpos(spaced, f" {word}") > 0 for word in words_of(q)])


def words_of(q: str) -> list[str]:
    return [word[:MAX_WORD] for word in q.lower().split()[:MAX_WORDS]]


def near_word(word: str) -> ColumnElement[bool]:
    words = func.unnest(func.string_to_array(Listing.search_text, " ")).column_valued("word")
    edits = 2 if len(word) > SHORT_WORD else 1
    close = exists().where(func.levenshtein_less_equal(func.left(words, MAX_WORD), word, edits) <= edits)
    candidate = literal(word).op("<%", is_comparison=True)(Listing.search_text)
    return candidate & (close | (func.word_similarity(word, Listing.search_text) >= SAME_WORD))
