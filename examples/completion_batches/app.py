"""The application, as the command line finds it: `async-task --app completion_batches.app:outbox`."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from async_task import Again, AsyncTask, Schedule, target
from completion_batches.database import SessionLocal, engine
from completion_batches.models import Base, Prompt, submit_batch
from completion_batches.settings import settings


@target("completion_batches.submit_waiting")
def submit_waiting(session: Session) -> Again | None:
    """Submit the prompts that wait, one batch a transaction. The session is that of the attempt."""
    waiting = select(Prompt).where(Prompt.batch_id.is_(None)).order_by(Prompt.id).limit(settings.batch_size)
    prompts = list(session.scalars(waiting.with_for_update(skip_locked=True)))
    if not prompts:
        return None
    submit_batch(session, prompts)
    return Again(after=0)


def made_schedule() -> Schedule:
    """Every night; or at an interval, for a demo. A night without a clock is made up for by the next clock."""
    schedule = Schedule()
    if settings.submit_every is not None:
        schedule.every(seconds=settings.submit_every, call=submit_waiting, overlap="skip")
    else:
        schedule.at(settings.submit_at, tz=settings.submit_zone, call=submit_waiting, catch_up="latest", overlap="skip")
    return schedule


outbox = AsyncTask(SessionLocal, schedule=made_schedule(), lease=settings.lease)


def create_tables() -> None:
    """Make the missing tables. A real application migrates."""
    outbox.create_schema()
    Base.metadata.create_all(engine)
