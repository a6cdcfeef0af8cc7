"""Files on the wire, in OpenAI's shape."""

from typing import Any, Self

from pydantic import BaseModel

from app.files.tables import DatasetReport, File
from app.wire import unix


class FileOut(BaseModel):
    id: str
    object: str = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str
    expires_at: int | None
    status_details: str | None

    @classmethod
    def of(cls, file: File) -> Self:
        return cls(
            id=file.id,
            bytes=file.bytes,
            created_at=unix(file.created_at),
            filename=file.filename,
            purpose=file.purpose,
            status=file.status,
            expires_at=unix(file.expires_at) if file.expires_at else None,
            status_details=file.status_details,
        )


class FileDeleted(BaseModel):
    id: str
    object: str = "file"
    deleted: bool = True


class ReportOut(BaseModel):
    """What validation said, by line; `report` is null until it is done."""

    file_id: str
    object: str = "file.report"
    status: str
    report: dict[str, Any] | None

    @classmethod
    def of(cls, file: File, report: DatasetReport | None) -> Self:
        return cls(file_id=file.id, status=file.status, report=report.report if report else None)
