"""The API at a glance, from its own OpenAPI document; without a viewer from elsewhere it works offline."""

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.web.visitors import AnyVisitor

router = APIRouter()


@dataclass(frozen=True)
class Operation:
    method: str
    path: str
    says: str
    parameters: list[str]


@router.get("/docs")
def reference(visitor: AnyVisitor, request: Request) -> Response:
    return visitor.show("reference", groups=grouped(request.app.openapi()["paths"]))


def grouped(paths: dict[str, dict[str, Any]]) -> dict[str, list[Operation]]:
    """By tag, in the order of the document."""
    groups: dict[str, list[Operation]] = {}
    for path, methods in paths.items():
        for method, operation in methods.items():
            tag = (operation.get("tags") or ["other"])[0]
            says = operation.get("description") or operation.get("summary", "")
            names = [parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "query"]
            groups.setdefault(tag, []).append(Operation(method.upper(), path, says, names))
    return groups
