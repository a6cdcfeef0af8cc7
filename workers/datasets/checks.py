"""What a check of rows is, and which there are."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from app.files.rows import Row


@dataclass(frozen=True)
class Numbered:
    """A good row. `text`: everything a person wrote in it."""

    line: int
    row: Row
    text: str


class Check(Protocol):
    """Sees every row once, in the order of the file."""

    def codes(self, numbered: Numbered) -> Iterable[str]:
        """What it finds in this row."""
        ...

    def summary(self) -> dict[str, Any]:
        """What it has to say of the whole file, beside the rows it found."""
        ...


def make(name: str, rows: int, every_row: bool) -> Check:
    """A fresh check by name; its libraries are imported here and not before.

    `rows`: how many the file has. `every_row`: don't sample, somebody acts on each finding.
    """
    if name == "duplicates":
        from workers.datasets.duplicates import Duplicates

        return Duplicates(rows)
    if name == "language":
        from workers.datasets.language import Language

        return Language(rows, every_row)
    if name == "personal_data":
        from workers.datasets.personal import PersonalData

        return PersonalData()
    if name == "secrets":
        from workers.datasets.secrets import Secrets

        return Secrets()
    if name == "profanity":
        from workers.datasets.profanity import Profanity

        return Profanity()
    from workers.datasets.balance import Balance

    return Balance()
