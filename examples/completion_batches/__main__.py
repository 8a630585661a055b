"""Ask, and show the answers.

python -m completion_batches ask "Why is the sky blue?"       the next nightly batch takes it
python -m completion_batches ask --now "Why?" "How?"          a batch of these two, at once
python -m completion_batches show                             the batches and the prompts
"""

import argparse

from sqlalchemy import select

from completion_batches.app import create_tables
from completion_batches.database import SessionLocal
from completion_batches.models import CompletionBatch, Prompt, submit_batch


def ask(texts: list[str], *, now: bool) -> None:
    """Write the prompts, and with `now` submit them as a batch, in one transaction."""
    with SessionLocal.begin() as session:
        prompts = [Prompt(text=text) for text in texts]
        session.add_all(prompts)
        if now:
            submit_batch(session, prompts)


def show() -> None:
    with SessionLocal() as session:
        for batch in session.scalars(select(CompletionBatch).order_by(CompletionBatch.id)):
            print(f"batch {batch.id} {batch.status}", *filter(None, [batch.failure_reason]), sep=": ")
        for prompt in session.scalars(select(Prompt).order_by(Prompt.id)):
            print(f"prompt {prompt.id} {prompt.text!r}: {prompt.answer or 'no answer yet'}")


def main() -> None:
    words = argparse.ArgumentParser(prog="python -m completion_batches", description="Ask, and show the answers.")
    verbs = words.add_subparsers(dest="verb", required=True)
    asking = verbs.add_parser("ask", help="write prompts for the next nightly batch")
    asking.add_argument("prompts", nargs="+", metavar="PROMPT")
    asking.add_argument("--now", action="store_true", help="submit them as one batch at once")
    verbs.add_parser("show", help="print the batches and the prompts")
    given = words.parse_args()
    create_tables()
    if given.verb == "ask":
        ask(given.prompts, now=given.now)
    else:
        show()


if __name__ == "__main__":
    main()
