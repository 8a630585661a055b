"""The tables of the example: prompts, and the batches in which they are at the provider."""

from sqlalchemy import JSON, ForeignKey, String, Text, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from async_task import Pollable, Polling
from completion_batches import client
from completion_batches.database import SessionLocal
from completion_batches.settings import settings


class Base(DeclarativeBase):
    """The declarative base of the example."""


class CompletionBatch(Pollable, Base):
    """A batch at the provider. Its methods are called while no transaction is open, and open their own."""

    __tablename__ = "completion_batches"
    polling = Polling(
        name="completion_batches", schedule=settings.schedule, max_age=settings.max_age, grace=settings.grace,
        resume_every=settings.resume_every, expire_every=settings.expire_every, transient_errors=[client.Unavailable],
    )  # fmt: skip

    id: Mapped[int] = mapped_column(primary_key=True)
    provider_id: Mapped[str | None] = mapped_column(String(100))
    results: Mapped[dict[str, str] | None] = mapped_column(JSON(none_as_null=True))

    def start(self, idempotency_key: str) -> None:
        """The prompts of a batch never change, so that the same key always comes with the same prompts."""
        with SessionLocal() as session:
            mine = select(Prompt).where(Prompt.batch_id == self.id)
            prompts = {str(prompt.id): prompt.text for prompt in session.scalars(mine)}
        self.provider_id = client.create_batch(prompts, idempotency_key=idempotency_key)

    def check(self) -> str:
        return client.batch_status(str(self.provider_id))

    def fetch(self) -> None:
        self.results = client.batch_results(str(self.provider_id))

    def handle(self) -> None:
        """Give each prompt its answer. Those that have none wait for the next batch.

        A second call changes nothing: it only finds what is still in this batch and without an answer.
        """
        mine = select(Prompt).where(Prompt.batch_id == self.id, Prompt.answer.is_(None)).with_for_update()
        results = self.results or {}
        with SessionLocal.begin() as session:
            for prompt in session.scalars(mine):
                prompt.answer = results.get(str(prompt.id))
                if prompt.answer is None:
                    prompt.batch_id = None

    def stop(self) -> None:
        if self.provider_id is not None:
            client.cancel_batch(self.provider_id)

    def secrets(self) -> list[str]:
        return [settings.provider_key.get_secret_value()]


class Prompt(Base):
    """A question, and its answer once there is one. Without a batch it waits for the next one."""

    __tablename__ = "completion_prompts"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(Text)
    batch_id: Mapped[int | None] = mapped_column(ForeignKey(CompletionBatch.id), index=True)
    answer: Mapped[str | None] = mapped_column(Text)


def submit_batch(session: Session, prompts: list[Prompt]) -> CompletionBatch:
    """Submit these prompts as one batch, if and only if the transaction of `session` commits."""
    batch = CompletionBatch()
    batch.submit(session)
    for prompt in prompts:
        prompt.batch_id = batch.id
        session.add(prompt)
    return batch
