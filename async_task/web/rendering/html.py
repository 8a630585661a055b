"""Pages as HTML: the templates, and what they call."""

import datetime as dt
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request

from async_task.web.rendering import arguments, times
from async_task.web.rendering.excerpts import beginning
from async_task.web.rendering.markdown import as_html
from async_task.web.security.access import Access, Right
from async_task.web.view import Page

SHAPES = {
    "pending": "○", "due": "◐", "performing": "▶", "running": "▶", "succeeded": "●", "failed": "✕", "expired": "◇",
    "canceled": "⊘", "processed": "●", "failing": "▲", "queued": "◐", "waiting": "○", "retried": "▲", "later": "○",
    "ok": "●", "warning": "▲", "critical": "✕", "unknown": "?", "dead": "✕", "silent": "▲", "alive": "●",
    "paused": "‖", "enqueued": "●", "skipped": "○", "missed": "✕", "not_submitted": "?",
}  # fmt: skip
"""A state is a word, a shape and a colour."""


NOTHING = "\N{EN DASH}"
"""Stands where there is no value."""


@cache
def environment() -> Environment:
    """Every text is escaped; a name that a template does not get is an error."""
    made = Environment(
        loader=PackageLoader("async_task.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters.update(
        when=when,
        span=times.span,
        exact=times.exact,
        state=state,
        number=number,
        markdown=as_html,
        first_line=first_line,
        segment=segment,
        argument=arguments.shown,
        kind_of=arguments.kind_of,
        size=size,
        sentence=sentence,
        changed=changed,
        counted=counted,
        beginning=beginning,
    )
    made.globals.update(Right=Right)
    return made


def render(request: Request, template: str, pages: tuple[Page, ...], values: Mapping[str, Any]) -> str:
    """`values`: beside what every page has. The person need not be known yet."""
    base = str(request.scope.get("root_path", "")).rstrip("/")
    state_of_request = request.scope.get("state", {})
    given = {
        "base": base, "pages": [one for one in pages if one.name], "path": request.url.path[len(base) :],
        "access": state_of_request.get("access", Access.none()), "csrf": state_of_request.get("csrf", ""),
    }  # fmt: skip
    return environment().get_template(template).render(given | dict(values))


def when(moment: dt.datetime | None, now: dt.datetime) -> Markup:
    """`3 min ago`, with the exact instant in the element."""
    if moment is None:
        return Markup('<span class="none">{}</span>').format(NOTHING)
    words = times.since(moment, now)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        moment.astimezone(dt.UTC).isoformat(), times.exact(moment), words
    )


def state(word: str, said: str | None = None) -> Markup:
    """A state as a shape and a word; its class gives the colour."""
    made = Markup('<span class="state {0}"><span class="shape" aria-hidden="true">{1}</span>{2}</span>')
    return made.format(word, SHAPES.get(word, "○"), said or word.replace("_", " "))


def number(value: float | None, *, is_estimate: bool = False) -> str:
    """With separators; an estimate begins with `~`."""
    if value is None:
        return NOTHING
    text = f"{value:,.0f}" if value == int(value) or abs(value) >= 10 else f"{value:,.1f}"
    return f"~{text}" if is_estimate else text


def first_line(text: str | None, longest: int = 160) -> str:
    """The first line, cut."""
    line = (text or "").partition("\n")[0]
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def sentence(words: str) -> Markup:
    """Begins with a capital letter; what stands between backticks is code."""
    parts = begun(words).split("`")
    return Markup("").join(Markup("<code>{}</code>").format(one) if at % 2 else one for at, one in enumerate(parts))


def begun(words: str) -> str:
    """Begins with a capital letter, unless it begins with a name, such as that of a worker."""
    return f"{words[:1].upper()}{words[1:]}" if words.partition(" ")[0].isalpha() else words


def counted(number: int, noun: str) -> str:
    """`1 error`, `2 crashes`."""
    ending = "es" if noun.endswith(("s", "sh")) else "s"
    return f"{number:,} {noun}{'' if number == 1 else ending}"


def changed(values: tuple[object, object]) -> tuple[str, str]:
    """The value before and after a change: instants with as many digits as tell them apart."""
    before, after = values
    forms = ("seconds", "milliseconds", "microseconds")
    texts = [(_value(before, form), _value(after, form)) for form in forms]
    return next((one for one in texts if one[0] != one[1]), texts[0])


def _value(value: object, form: str) -> str:
    if isinstance(value, dt.datetime):
        utc = value.astimezone(dt.UTC).replace(tzinfo=None)
        return f"{utc.isoformat(' ', form)} UTC"
    return "none" if value is None else str(value)


def size(number_of_bytes: int | None) -> str:
    """`1.5 GB`."""
    if number_of_bytes is None:
        return NOTHING
    amount = float(number_of_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def segment(text: str) -> str:
    """As one part of a path: a slash in it is none, so that no browser takes `..` in it for a way up."""
    return quote(text, safe="")
