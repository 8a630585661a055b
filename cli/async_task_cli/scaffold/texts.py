"""The texts of the files, from their templates: Python with $words in it."""

import json
from importlib import resources
from string import Template


def text_of(template: str, **words: str) -> str:
    """The text of templates/<template>.py.txt with its $words filled in."""
    file = resources.files("async_task_cli.scaffold") / "templates" / f"{template}.py.txt"
    return Template(file.read_text(encoding="utf-8")).substitute(words)


def literal(value: str) -> str:
    """A Python string literal in double quotes: JSON strings are Python strings too."""
    return json.dumps(value, ensure_ascii=False)
