"""The shop's application, as the command line finds it: `async-task --app shop.app:outbox`.

SHOP_DATABASE_URL: the database; by default `shop.sqlite` in the working directory.
SHOP_LEASE: seconds after which the attempts of a dead process are recovered; by default 5.
SHOP_KEYS_FILE: the keys for secret arguments, by default `shop.keys`. Refunds need it:
(umask 077; async-task keys generate > shop.keys)
"""

import os
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from async_task import AesGcmEncryptor, AsyncTask, Keys, Schedule
from shop.models import Attempt, Base
from shop.outbox import report

engine = create_engine(os.environ.get("SHOP_DATABASE_URL") or "sqlite:///shop.sqlite", hide_parameters=True)
Session = sessionmaker(engine)
keys_file = Path(os.environ.get("SHOP_KEYS_FILE") or "shop.keys")
schedule = Schedule()
schedule.every(minutes=1, call=report, overlap="skip")
if find_spec("opentelemetry"):  # async-task[otel]; a program of yours imports it, or leaves it out
    from async_task.integrations.opentelemetry import OpenTelemetry

    telemetry: OpenTelemetry | None = OpenTelemetry()
else:
    telemetry = None
outbox = AsyncTask(
    Session,
    model=Attempt,
    modules=["shop.outbox"],
    encryptors=[AesGcmEncryptor(Keys.from_file(keys_file))] if keys_file.exists() else [],
    schedule=schedule,
    lease=float(os.environ.get("SHOP_LEASE", "5")),
    telemetry=telemetry,
)


def create_tables() -> None:
    """Make the missing tables. A real shop migrates."""
    outbox.create_schema()
    Base.metadata.create_all(engine)
