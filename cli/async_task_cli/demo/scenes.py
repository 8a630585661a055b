"""The scenes of the demo. Each does one thing for real, checks the result, and only then prints it."""

import base64
import contextlib
import datetime as dt
import time
import uuid
from typing import Any

from sqlalchemy import func, inspect, select

from async_task import Status
from async_task_cli.demo.play import Play
from async_task_cli.demo.stage import Stage, check, wait_until

ACCOUNT = "DE89370400440532013000"


class TornUp(Exception):
    """Raised to roll the shop's transaction back."""


def rolled_back(play: Play) -> None:
    """An order is rolled back, and its calls with it."""
    number, ids = play.next_number(), list[uuid.UUID]()

    def place_and_tear_up(session: Any) -> None:
        ids.extend(play.write(session, number, "Ada", 1990))
        session.flush()
        raise TornUp

    with contextlib.suppress(TornUp):
        play.stage.commit(place_and_tear_up)
    play.stage.app.run_batch()
    left = play.stage.app.read(lambda session: _count(session, play.stage, number, ids))
    heard = len(play.stage.warehouse.received(number))
    check(
        (len(ids), left, heard) == (2, 0, 0),
        "a call that was rolled back is never made",
        f"{left} rows, {heard} requests",
    )
    play.unheard.append(number)
    play.tell(f"Order {number} and its {len(ids)} calls were written, and then rolled back.")
    play.tell(f"Rows left: {left}. Requests that the warehouse got about it: {heard}.")


def made_after_commit(play: Play) -> None:
    """No call is made before the commit, and every call after it."""
    numbers = [play.next_number() for _ in range(3)]
    for number, customer, amount in zip(numbers, ("Grace", "Edsger", "Barbara"), (4200, 990, 12000), strict=True):
        play.place(number, customer, amount)
    before = sum(len(play.stage.warehouse.received(number)) for number in numbers)
    began = time.monotonic()
    for number in numbers:
        play.run_batches(number)
    took = time.monotonic() - began
    after = sum(len(play.stage.warehouse.received(number)) for number in numbers)
    paid = play.stage.app.read(lambda session: _paid(session, play.stage, numbers))
    check((before, after, paid) == (0, 3, 3), "3 orders were packed and paid after their commit", (before, after, paid))
    for number in numbers:
        play.check_packed_once(number)
    play.expects[Status.SUCCEEDED] += 6
    play.tell(f"{len(numbers)} orders committed. Requests so far: {before}; after a batch of {took:.2f} s: {after}.")
    play.tell(f"Packed: {after}. Marked paid, in the transaction of `succeeded`: {paid}.")


def failed_and_retried(play: Play) -> None:
    """The warehouse answers 503 twice."""
    number = play.next_number()
    play.stage.warehouse.will(number, fail=2)
    began = time.monotonic()
    play.place(number, "Alan", 3100)
    play.run_batches(number)
    took = time.monotonic() - began
    answers = [entry["answer"] for entry in play.stage.warehouse.received(number)]
    row = play.fulfilment(number)
    check(answers == [503, 503, 201], "it fails twice and then succeeds", answers)
    counts = (row.num_attempts, row.num_errors, row.status)
    check(counts == (3, 2, Status.SUCCEEDED), "3 starts and 2 errors are counted", counts)
    play.check_packed_once(number)
    play.retried = row.id
    play.expects[Status.SUCCEEDED] += 2
    play.tell(f"Order {number}: the warehouse answered {', '.join(map(str, answers))}, within {took:.2f} s.")
    play.tell(f"Its row: {row.num_attempts} starts, {row.num_errors} errors, {row.status.value}.")


def expired(play: Play) -> None:
    """A courier for today was not called in time."""
    number = max(play.calls)
    client, model = play.stage.shop["outbox"].OrderClient, play.stage.app.model
    deadline = play.stage.app.now() + dt.timedelta(seconds=0.2)

    def book(session: Any) -> uuid.UUID:
        return model.options(session=session, expires_at=deadline).call(client.book_courier, number=number).id

    def is_swept() -> bool:
        play.stage.app.sweep()
        return play.row(attempt_id).status.is_terminal

    attempt_id = play.stage.commit(book)
    play.calls[number].append(attempt_id)
    wait_until(is_swept, "a sweep expires what is too late")
    play.stage.app.run_batch()
    row = play.row(attempt_id)
    asked = sum(entry["path"] == "/couriers" for entry in play.stage.warehouse.received(number))
    found = (row.status, row.num_attempts, asked)
    check(found == (Status.EXPIRED, 0, 0), "it expired, and was never made", found)
    play.expects[Status.EXPIRED] += 1
    play.tell(f"A courier for order {number} was wanted within 0.2 s, and no worker ran.")
    play.tell(f"Its row: {row.num_attempts} starts, {row.status.value}. Requests for a courier: {asked}.")


def killed(play: Play) -> None:
    """kill -9 during a call, after its effect and before its answer."""
    number = play.next_number()
    play.stage.warehouse.will(number, hang=True)
    play.place(number, "Katherine", 7700)
    process = play.stage.run_elsewhere("run-batch")
    try:
        wait_until(lambda: play.stage.warehouse.parcels().count(number), "the process has the parcel packed")
        # This scene is not about the other call of the order.
        wait_until(lambda: any(row.status.is_terminal for row in play.rows(number)), "the process has it marked paid")
        play.tell(f"Order {number}: process {process.pid} runs `async-task run-batch`.")
        play.tell("The warehouse has packed, and does not answer.")
    finally:
        process.kill()
        code = process.wait()
    died = time.monotonic()
    row = play.fulfilment(number)
    check((code, row.is_performing) == (-9, True), "it was killed in the middle of its call", (code, row.status))
    play.tell(
        f"kill -9 {process.pid}. Its row: {row.num_attempts} start, {row.status.value}, held by the dead process."
    )
    play.stage.warehouse.will(number, hang=False)
    wait_until(lambda: _is_recovered(play, number), "a sweep recovers it")
    took = time.monotonic() - died
    play.run_batches(number)
    row = play.fulfilment(number)
    requests = play.stage.warehouse.received(number)
    keys = {entry["key"] for entry in requests}
    check(
        (row.status, row.num_attempts) == (Status.SUCCEEDED, 2),
        "its second start succeeded",
        (row.status, row.num_attempts),
    )
    check((len(requests), keys) == (2, {str(row.id)}), "the warehouse got it twice, under one key", requests)
    play.check_packed_once(number)
    play.expects[Status.SUCCEEDED] += 2
    play.tell(
        f"A sweep gave it back after {took:.1f} s, a batch made it: {row.num_attempts} starts, {row.status.value}."
    )
    play.tell(f"The warehouse got {len(requests)} requests with {len(keys)} Idempotency-Key, and packed 1 parcel.")


def _is_recovered(play: Play, number: int) -> bool:
    play.stage.app.sweep()
    return not any(row.is_performing for row in play.rows(number))


def asked_twice(play: Play) -> None:
    """A customer clicks twice: one token makes one call."""
    number, shop = play.next_number(), play.stage.shop
    call = {
        "target": shop["outbox"].OrderClient, "method_name": "fulfill", "idempotence_token": f"order-{number}",
        "method_args": {"customer": "Margaret", "number": number},
    }  # fmt: skip

    def click(session: Any) -> uuid.UUID:
        return play.stage.app.model.ensure(session, **call).id

    play.stage.commit(
        lambda session: session.add(shop["models"].Order(number=number, customer="Margaret", amount=2500))
    )
    first, second = play.stage.commit(click), play.stage.commit(click)
    play.calls[number] = [first]
    play.run_batches(number)
    rows = play.stage.app.read(lambda session: _with_token(session, play.stage, f"order-{number}"))
    requests = len(play.stage.warehouse.received(number))
    check(
        (first == second, rows, requests) == (True, 1, 1),
        "a used token makes no second call",
        (first, second, rows, requests),
    )
    play.check_packed_once(number)
    play.expects[Status.SUCCEEDED] += 1
    play.tell(f"Order {number}: 2 transactions asked for a call with the token 'order-{number}'.")
    play.tell(f"Both committed, and both got the same attempt. Rows: {rows}. Requests: {requests}.")


def kept_secret(play: Play) -> None:
    """A refund whose account number is encrypted in the row."""
    number = min(play.calls)
    refund, model = play.stage.shop["outbox"].refund, play.stage.app.model
    made = play.stage.commit(
        lambda session: model.options(session=session).call(refund, number=number, iban=ACCOUNT).id
    )
    play.calls[number].append(made)
    stored = play.stage.app.read(lambda session: _stored(session, play.stage, made))
    text = stored["method_args"]
    check(stored["encryptor"] == "aes-gcm", "the row names its encryptor", stored["encryptor"])
    seen = [str(value) for value in stored.values()] + [base64.b64decode(text).decode("latin-1")]
    check(not any(ACCOUNT in one for one in seen), "the account is nowhere in the row", "it is there")
    play.run_batches(number)
    got = play.stage.app.read(lambda session: _status_of(session, play.stage, number))
    check(got == f"refunded to {ACCOUNT[-4:]}", "the target got the account", got)
    play.expects[Status.SUCCEEDED] += 1
    play.tell(f"Order {number} is to be refunded to {ACCOUNT}. Its row:")
    shown = play.stage.app.attempts.arguments(made)
    play.tell(f"encryptor    {shown.encryptor}, key {shown.key_id}")
    play.tell(f"method_args  ...{text[44:84]}... ({shown.length} characters)")
    play.tell(f"The account is not in it. The target got it: order {number} is {got}.")


def left_for_you(play: Play) -> None:
    """One call is left due for the user who tries the commands."""
    number = max(play.calls)
    mark_paid, model = play.stage.shop["outbox"].mark_paid, play.stage.app.model
    made = play.stage.commit(lambda session: model.options(session=session).call(mark_paid, number=number).id)
    play.calls[number].append(made)
    row = play.row(made)
    check((row.status, row.is_performing) == (Status.PENDING, False), "one call waits", row.status)
    play.expects[Status.PENDING] += 1
    play.tell(f"Order {number} is not marked paid yet: that call is due, and left for you.")


SCENES = (
    ("A transaction that rolls back", rolled_back),
    ("Calls that are made after the commit", made_after_commit),
    ("A call that fails twice and then succeeds", failed_and_retried),
    ("A call that comes too late", expired),
    ("A process that is killed in the middle", killed),
    ("A call that is asked for twice", asked_twice),
    ("A call whose arguments are secret", kept_secret),
    ("And one more", left_for_you),
)


def _count(session: Any, stage: Stage, number: int, ids: list[uuid.UUID]) -> int:
    order, model = stage.shop["models"].Order, stage.app.model
    orders = session.scalar(select(func.count()).select_from(order).where(order.number == number))
    attempts = session.scalar(select(func.count()).select_from(model).where(model.id.in_(ids)))
    return int(orders + attempts)


def _paid(session: Any, stage: Stage, numbers: list[int]) -> int:
    order = stage.shop["models"].Order
    where = (order.number.in_(numbers), order.status == "paid")
    return int(session.scalar(select(func.count()).select_from(order).where(*where)))


def _with_token(session: Any, stage: Stage, token: str) -> int:
    model = stage.app.model
    return int(session.scalar(select(func.count()).select_from(model).where(model.idempotence_token == token)))


def _stored(session: Any, stage: Stage, attempt_id: uuid.UUID) -> dict[str, Any]:
    """The row as it is in the database."""
    table: Any = inspect(stage.app.model).local_table
    return dict(session.execute(select(table).where(table.c.id == attempt_id)).one()._mapping)


def _status_of(session: Any, stage: Stage, number: int) -> str:
    order = stage.shop["models"].Order
    return str(session.scalar(select(order.status).where(order.number == number)))
