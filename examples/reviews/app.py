"""The application, as the command line finds it: `async-task --app reviews.app:outbox`."""

import os

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from async_task import AsyncTask, Schedule, process_models

schedule = Schedule()
schedule.every(hours=1, call=process_models)

engine = create_engine(os.environ.get("REVIEWS_DATABASE_URL") or "sqlite:///reviews.sqlite")
SessionLocal = sessionmaker(engine)
outbox = AsyncTask(SessionLocal, modules=["reviews.models"], schedule=schedule)
