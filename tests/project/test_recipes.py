"""The pages of the recipes show what is in their applications, which `make test-recipes` runs."""

import pathlib
import re
from collections.abc import Iterator

import pytest

from recipes.recipe import RECIPES

TREE = pathlib.Path(__file__).parents[2]
BLOCK = re.compile(r"^```(?:python|toml|dockerfile)\n# (\S+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
README = (TREE / "README.md").read_text()


def excerpts() -> Iterator[tuple[str, str, str]]:
    """Each block of a page that names a file: the recipe, the file and the text."""
    for name in RECIPES:
        page = (TREE / "docs" / f"{name}.md").read_text()
        yield from ((name, file, text) for file, text in BLOCK.findall(page))


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_has_a_page_that_the_readme_links_and_whose_blocks_name_their_files(name: str) -> None:
    page = (TREE / "docs" / f"{name}.md").read_text()
    assert len(re.findall(r"^```(?:python|toml|dockerfile)$", page, re.MULTILINE)) == len(BLOCK.findall(page)) > 0
    assert f"(docs/{name}.md)" in README


@pytest.mark.parametrize(("name", "file", "text"), list(excerpts()))
def test_each_block_of_a_page_is_in_the_file_that_it_names(name: str, file: str, text: str) -> None:
    assert text.rstrip("\n") in (TREE / "examples" / "recipes" / name / file).read_text()
