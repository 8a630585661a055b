"""Requests that are refused: the error that says so, and the plain page that a person sees."""

import html
from collections.abc import Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

NO_RIGHT = "You do not have the right to do this."


class Refused(HTTPException):
    """The request is refused, and nothing was changed. `status`: of the response. `words`: a sentence for the person,
    without details."""

    def __init__(self, status: int, words: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, words, dict(headers or {}))
        self.status = status
        self.words = words


def plain_page(request: Request, refused: Refused) -> Response:
    """The response to a refused request, without style: as `data_page` where that has one, else HTML."""
    if (found := data_page(request, refused)) is not None:
        return found
    title = html.escape(f"{refused.status} {phrase_of(refused.status)}")
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<h1>{title}</h1><p>{html.escape(refused.words)}</p></html>"
    )
    return HTMLResponse(text, refused.status, refused.headers)


def data_page(request: Request, refused: Refused) -> Response | None:
    """The response to a program: JSON where the path ends with .json, plain text where it ends with .csv, else None."""
    path = str(request.scope["path"])
    if path.endswith(".json"):
        return JSONResponse({"error": refused.words}, refused.status, refused.headers)
    if path.endswith(".csv"):
        return PlainTextResponse(f"{refused.words}\n", refused.status, refused.headers)
    return None


def phrase_of(status: int) -> str:
    """What HTTP calls this status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Refused"
