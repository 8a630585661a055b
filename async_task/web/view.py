"""What a page shows, whatever the format: HTML, JSON or CSV."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import quote

from async_task.web.requests.query import Query
from async_task.web.security.access import Access

if TYPE_CHECKING:
    from async_task.application.app import AsyncTask


@dataclass(frozen=True, slots=True)
class View:
    """`values`: what the template takes. `data`: the same for `.json`. `columns` and `rows`: the same for `.csv`.
    `command`: what gives it in a shell. `title`: of this page; empty: the name of the page.
    `template`: of this view; empty: that of the page. `is_large`: so that it is not kept in memory.
    `next`: what `after=` takes for the page that follows; None where there is none."""

    values: Mapping[str, Any]
    data: Any
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    command: str = ""
    title: str = ""
    template: str = ""
    is_large: bool = False
    next: str | int | None = None


T = TypeVar("T")


class Recent(Protocol):
    """What `read` returns, or what it returned less than `max_age` seconds ago for whichever page: for figures of the
    whole application that take long to read."""

    def __call__(self, figure: str, read: Callable[[], T], max_age: float, /) -> T: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """One look at a page. `parts`: of its path, by name. `settings`: of this process, each with where it comes from."""

    outbox: "AsyncTask"
    query: Query
    access: Access
    recent: Recent
    parts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Page:
    """A page: its name in the navigation (empty: it is not in there), its path below the dashboard's, its template, and
    the function that reads what it shows, by the reading API alone."""

    name: str
    path: str
    template: str
    read: Callable[[Asked], View]

    def stem(self, parts: Mapping[str, str]) -> str:
        """The path below the dashboard's to which .json or .csv is added, with these parts of the page's path."""
        if self.path == "/":
            return "/overview"
        quoted = {name: quote(one, safe="") for name, one in parts.items()}  # a slash in a key is none
        return self.path.replace(":path}", "}").format_map(quoted)
