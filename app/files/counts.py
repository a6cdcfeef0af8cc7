"""A file's report as one tokenizer counts it: the first is the store's own, others are added when a job needs them."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from app.database import utc_now
from app.files.tables import DatasetReport, File
from app.files.validation import LEASE

# In a report: which tokenizer counted it, and what others found, by tokenizer (app.variants.tokenizers.counts_as).
TOKENIZER, OTHERS = "tokenizer", "other_tokenizers"
DIFFERS = ("tokens", "tokens_max", "trained_tokens", "over_context")
TROUBLE = "trouble"


def as_counted(report: Mapping[str, Any], tokenizer: str) -> dict[str, Any] | None:
    """The report with this tokenizer's numbers; None when it has not counted the file. `trouble`: why the file cannot
    be trained on with it, if so.
    """
    if report.get(TOKENIZER) == tokenizer:
        return dict(report)
    found = report.get(OTHERS, {}).get(tokenizer)
    return None if found is None else {**report, **found}


def add_count(tx: Session, file_id: str, tokenizer: str, counted: Mapping[str, Any], trouble: str | None) -> None:
    """`counted`: a report made with another tokenizer than the file's first."""
    row = tx.get_one(DatasetReport, file_id, with_for_update=True)
    found = {name: counted[name] for name in DIFFERS} | {TROUBLE: trouble}
    row.report = {**row.report, OTHERS: {**row.report.get(OTHERS, {}), tokenizer: found}}


def begin_count(tx: Session, file_id: str) -> File | None:
    """The file, leased; None when it is gone, not validated, or another worker reads it."""
    file = tx.get(File, file_id, with_for_update=True)
    if file is None or file.deleted_at is not None or file.status != "processed":
        return None
    if file.lease_until and file.lease_until > utc_now():
        return None
    file.lease_until = utc_now() + LEASE
    return file
