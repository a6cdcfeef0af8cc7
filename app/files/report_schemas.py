"""Reports and cleanings of a file on the wire."""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from app.files.reports import CHECKS
from app.files.tables import FileReport
from app.wire import Strict, unix

CheckName = Literal["duplicates", "language", "personal_data", "secrets", "profanity", "balance"]
RuleName = Literal[
    "duplicates", "near_duplicates", "leakage", "personal_data", "secrets", "profanity", "control_characters"
]


class ReportCreate(Strict):
    """`checks` left out: all. `against`: a file that must not share rows with this one."""

    checks: list[CheckName] | None = Field(default=None, max_length=20)
    against: str | None = Field(default=None, max_length=64)

    def options(self) -> dict[str, Any]:
        return {"checks": list(dict.fromkeys(CHECKS if self.checks is None else self.checks))}


class CleanCreate(Strict):
    """What to drop. `language`: ISO 639-1; rows that are surely in another go. Rows that cannot be read always go."""

    rules: list[RuleName] = Field(default=[], max_length=20)
    language: str | None = Field(default=None, pattern="^[a-z]{2}$")
    against: str | None = Field(default=None, max_length=64)

    def options(self) -> dict[str, Any]:
        return {"rules": list(dict.fromkeys(self.rules)), "language": self.language}


class FileReportOut(BaseModel):
    """`result` is null until `status` is succeeded; `output_file`: the new file of a cleaning."""

    id: str
    object: str = "file.full_report"
    type: str
    created_at: int
    finished_at: int | None
    file_id: str
    against: str | None
    options: dict[str, Any]
    status: str
    error: str | None
    result: dict[str, Any] | None
    output_file: str | None

    @classmethod
    def of(cls, report: FileReport) -> Self:
        return cls(
            id=report.id,
            type=report.type,
            created_at=unix(report.created_at),
            finished_at=unix(report.finished_at) if report.finished_at else None,
            file_id=report.file_id,
            against=report.against_id,
            options=report.options,
            status=report.status,
            error=report.error,
            result=report.result,
            output_file=report.output_file_id,
        )
