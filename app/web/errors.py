"""Refusals as pages, for browsers; the API keeps its envelope."""

from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from app.error_responses import error_headers
from app.errors import AppError, Unauthorized
from app.web.rendering import page

API_PATHS = ("/v1/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/static/")
TITLES = {
    400: "That did not work",
    403: "Not allowed",
    404: "Nothing here",
    405: "Not like this",
    413: "Too large",
    429: "Too fast",
    503: "One moment",
}


def error_page(request: Request, error: AppError) -> Response | None:
    """None where a client does not ask for HTML. Whoever is not signed in is led to the sign-in page and back."""
    if request.url.path.startswith(API_PATHS) or "text/html" not in request.headers.get("accept", ""):
        return None
    if isinstance(error, Unauthorized):
        query = f"?{request.url.query}" if request.url.query else ""
        back = request.url.path + query if request.method == "GET" else "/"
        return RedirectResponse(f"/sign-in?next={quote(back)}", 303)
    answer = page("error", error.status, title=TITLES.get(error.status, "Something went wrong"), message=error.message)
    answer.headers.update(error_headers(error))
    return answer
