"""The texts of the files, from their templates: Python with $words in it."""

import json
from importlib import resources
from string import Template


def text_of(template: str, **words: str) -> str:
    """The text of templates/<template>.py.txt with these words in it."""
    file = resources.files("async_task_cli.scaffold") / "templates" / f"{template}.py.txt"
    return Template(file.read_text(encoding="utf-8")).substitute(words)


def literal(value: str) -> str:
    """As Python writes it, in double quotes: JSON's texts are Python's too."""
    return json.dumps(value, ensure_ascii=False)
