"""Run the tests of the recipes that are named, or of all, two at a time, each on a database of its own."""

import contextlib
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from databases import Database, NoDatabase, available, own
from recipes.recipe import RECIPES, Recipe


def main(names: list[str]) -> int:
    """Return 1 if the tests of a recipe have failed, 2 for a name that no recipe has."""
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        print(f"There is no recipe {', '.join(unknown)}; there are {', '.join(RECIPES)}.", file=sys.stderr)
        return 2
    chosen = [RECIPES[name] for name in names or RECIPES]
    with contextlib.ExitStack() as until:
        server, why_not = _server(until)
        print(f"database: {server.description if server else f'SQLite, because {why_not}'}", flush=True)
        with ThreadPoolExecutor(2) as pool:
            have_passed = list(pool.map(lambda one: _timed(one, lambda: _test(one, server)), chosen))
    return 0 if all(have_passed) else 1


def _server(until: contextlib.ExitStack) -> tuple[Database | None, str]:
    """The PostgreSQL that the tests use; without one, why there is none."""
    try:
        return available(until).named("postgresql"), ""
    except NoDatabase as error:
        return None, str(error)


def _timed(recipe: Recipe, test: Callable[[], tuple[bool, str]]) -> bool:
    begun = time.monotonic()
    has_passed, output = test()
    took = f"{time.monotonic() - begun:.0f} s"
    last = output.strip().splitlines()[-1:]
    print(f"{recipe.name}: {last[0] if has_passed and last else output} ({took})", flush=True)
    return has_passed


def _test(recipe: Recipe, server: Database | None) -> tuple[bool, str]:
    """Whether the tests have passed, and what pytest has printed."""
    failure = recipe.set_up()
    if failure:
        return False, failure
    if server is None:
        return recipe.test(None)
    with own(server) as database:
        return recipe.test(database.sync_url)


sys.exit(main(sys.argv[1:]))
