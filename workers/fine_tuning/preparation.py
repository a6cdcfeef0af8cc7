"""What precedes a training process: reading files in this process, under the job's lease, heeding the same orders."""

from collections.abc import Callable, Mapping
from typing import Any

from app.database import transaction
from app.files.counts import as_counted
from app.files.find import find_report
from app.files.tables import File
from app.fine_tuning.methods import wrong_rows
from app.variants.tables import BaseModel
from app.variants.tokenizers import counts_as
from workers.fine_tuning.validate_file import trouble_for


class Halted(Exception):
    """The preparation was told to end; nothing of it needs to be kept."""


class Unfit(Exception):
    """A file cannot be trained on; `param` names it."""

    def __init__(self, trouble: str, param: str) -> None:
        super().__init__(trouble)
        self.param = param


class Preparation:
    """Stands where the child will be (workers.fine_tuning.child.Charge)."""

    def __init__(self) -> None:
        self._ended = False

    def order(self, what: str) -> None:
        self._ended = True

    def hint(self, busy: bool) -> None:
        """It is too short to give way."""

    def measure(self) -> None:
        """Its memory is this process's."""

    def kill(self) -> None:
        self._ended = True

    def obey(self) -> None:
        """To be called now and then. Raises Halted."""
        if self._ended:
            raise Halted


def reports_of(
    files: Mapping[str, File], base: BaseModel, method: str, obey: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    """Of each file by its role, in the tokens of the job's base; made where nobody has. Raises Unfit, Halted."""
    found = {}
    for role, file in files.items():
        trouble = trouble_for(file, base, obey)
        with transaction() as tx:
            row = find_report(tx, file.id)
            report = as_counted(row.report, counts_as(base)) if row else None
        if trouble is None and report is None:
            trouble = "The file was changed while it was read."
        if trouble := trouble or wrong_rows(method, report or {}):
            raise Unfit(trouble, role)
        found[role] = report or {}
    return found
