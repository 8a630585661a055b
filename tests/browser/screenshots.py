"""The pictures of the dashboard in the documentation: `make screenshots` takes them anew.

    python tests/browser/screenshots.py docs/images

Each page, light and dark at 1280 x 900, and light on a telephone, with a day of the example shop.
"""

import contextlib
import io
import os
import pathlib
import sys
import threading
from typing import Any

TESTS = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent / "examples")]

import psycopg  # noqa: E402
from PIL import Image  # noqa: E402
from sqlalchemy import create_engine, make_url, text  # noqa: E402
from sqlalchemy.orm import sessionmaker  # noqa: E402

import databases  # noqa: E402
from async_task import AsyncTask  # noqa: E402
from async_task.web.security.access import Access  # noqa: E402
from serving import apart, serving  # noqa: E402
from shop.models import Attempt  # noqa: E402
from shop.warehouse import Warehouse  # noqa: E402
from shop_day import ShopDay, shop_encryptor, shop_schedule  # noqa: E402
from windows import Windows, browser  # noqa: E402

MANNERS: dict[str, dict[str, bool]] = {"light": {}, "dark": {"dark": True}, "phone": {"narrow": True}}
PAGES = ("overview", "jobs", "stuck", "targets", "workers", "schedules", "system", "audit")


def main() -> None:
    """Take all pictures, in the folder that is given."""
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as until:
        day, outbox, told = _shop(until)
        made: Any = outbox
        address = until.enter_context(serving(made.dashboard(authorize=lambda request: Access.full("anna@web"))))
        paths = {name: f"/{name}" if name != "overview" else "/" for name in PAGES} | {"job": f"/jobs/attempts/{told}"}
        windows = Windows(until.enter_context(browser()))
        for manner, options in MANNERS.items():
            page = windows.open(address, **options)
            for name, path in paths.items():
                apart(day.beat)
                page.goto(address + path)
                _save(page.screenshot(), folder / f"dashboard-{name}-{manner}.png")
        windows.close()
    print("\n".join(windows.errors) or f"{len(MANNERS) * len(paths)} pictures are in {folder}.")


def _save(picture: bytes, path: pathlib.Path) -> None:
    """With 256 colours: half the size, and no difference that one sees."""
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(256).save(path, optimize=True)


def _shop(until: contextlib.ExitStack) -> tuple[ShopDay, AsyncTask, object]:
    """A database of its own on PostgreSQL, with a day of the shop in it."""
    warehouse = Warehouse()
    threading.Thread(target=warehouse.serve_forever, daemon=True).start()
    os.environ["SHOP_WAREHOUSE_URL"] = warehouse.url
    server = databases.available(until).named("postgresql")
    own = make_url(until.enter_context(databases.own(server)).sync_url)
    where = own.set(drivername="postgresql").render_as_string(hide_password=False)
    # Another address than the one that the page shows.
    engine = create_engine("postgresql+psycopg://db.shop.example/shop", creator=lambda: psycopg.connect(where))
    until.callback(engine.dispose)
    encryptor = shop_encryptor()
    outbox = AsyncTask(
        sessionmaker(engine), model=Attempt, modules=["shop.outbox"], encryptors=[encryptor], schedule=shop_schedule()
    )
    until.callback(outbox.close)
    day = ShopDay(engine, outbox, encryptor)
    told = day.fill(warehouse)
    with engine.begin() as connection:
        connection.execute(text("ANALYZE"))
    return day, outbox, told


if __name__ == "__main__":
    main()
