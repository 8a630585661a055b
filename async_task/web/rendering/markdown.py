"""Notes, which are Markdown, as HTML."""

from functools import cache, lru_cache

from markdown_it import MarkdownIt
from markupsafe import Markup


@lru_cache(maxsize=64)
def as_html(text: str) -> Markup:
    """Without raw HTML and images; a link leads only to http, https, mailto or this site, and tells no referrer."""
    return Markup(_parser().render(text))  # noqa: S704  (the parser escapes every text)


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable("strikethrough").disable("image")
    parser.add_render_rule("link_open", _link)
    return parser


def _link(self, tokens, index, options, env) -> str:  # type: ignore[no-untyped-def]
    tokens[index].attrSet("rel", "nofollow noopener noreferrer")
    return str(self.renderToken(tokens, index, options, env))
