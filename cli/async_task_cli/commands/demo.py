"""`async-task demo`."""

import time

import click
from rich.text import Text
from sqlalchemy import func, select

from async_task import Status
from async_task_cli.demo.play import Play
from async_task_cli.demo.scenes import SCENES
from async_task_cli.demo.stage import Stage, check, command_words, entering, set_up, usable
from async_task_cli.demo.traces import Traces
from async_task_cli.logs import without_final_failures
from async_task_cli.options import SETTINGS, Wanted, debugging
from async_task_cli.terminal import coloured, page, table


@click.command("demo", context_settings=SETTINGS)
@click.option(
    "--database-url", metavar="URL", help="Run it there, in tables of its own, instead of in a new SQLite file."
)
@debugging
def demo(database_url: str | None) -> None:
    """Watch an outbox at work: real transactions, a real warehouse over HTTP, a process that is really killed.

    The demo checks everything before it says so, and ends with 1 if anything is not so. The database stays there.
    """
    began = time.monotonic()
    given = click.get_current_context().find_object(Wanted)
    url = usable(database_url or (given.database_url if given else None))
    traces = Traces()
    with without_final_failures(), set_up(url) as stage:
        _introduce(stage)
        play = Play.on(stage, lambda words: click.echo(f"   {words}"))
        for number, (title, scene) in enumerate(SCENES, 1):
            page().print(Text(f"\n{number}. {title}", style="bold"))
            scene(play)
        _print_trace(play, traces)
        click.echo()
        _print_outcomes(play)
        _print_next_commands(play, url)
        click.echo()
        click.echo(_summary(play, time.monotonic() - began))
        _print_dashboard(stage, url)


def _introduce(stage: Stage) -> None:
    click.echo(f"A shop in {stage.folder}")
    click.echo(f"Its database: {stage.app.address}")
    click.echo(f"Its warehouse: {stage.warehouse.url}, process {stage.warehouse.pid}")


def _print_trace(play: Play, traces: Traces) -> None:
    if traces.is_there and play.retried is not None:
        page().print(Text("\nThe call that was retried, as OpenTelemetry sees it", style="bold"))
        for line in traces.lines_about(play.retried):
            play.tell(line)


def _print_outcomes(play: Play) -> None:
    model = play.stage.app.model
    sums = (func.count(), func.sum(model.num_attempts), func.sum(model.num_errors))
    query = select(model.status, *sums).where(model.id.in_(play.attempts)).group_by(model.status)
    found = {row[0]: row[1:] for row in play.stage.app.read(lambda session: session.execute(query).all())}
    calls = {status: row[0] for status, row in found.items()}
    check(calls == dict(play.expects), f"the calls ended so: {_by_status(play.expects)}", _by_status(calls))
    made = table(["OUTCOME", "CALLS", "STARTS", "ERRORS"], numbers=["CALLS", "STARTS", "ERRORS"])
    for status in (one for one in Status if one in found):
        made.add_row(coloured(status.value), *(str(int(number)) for number in found[status]))
    page().print(made)


def _print_next_commands(play: Play, database_url: str | None) -> None:
    click.echo("\nEverything is still there. Try:")
    words = command_words()
    commands = [
        f"{words} list",
        f"{words} show {play.retried}",
        f"{words} list --status expired --json",
        f"{words} run-batch --json",
    ]
    for line in [*entering(play.stage.folder, database_url), *commands]:
        # Not broken, because it is there to be copied.
        click.echo(f"   {line}")


def _summary(play: Play, seconds: float) -> str:
    """Checked again at the end, against what the warehouse has recorded."""
    parcels = play.stage.warehouse.parcels()
    check(sorted(parcels) == sorted(play.calls), "every committed order was packed once, and no other", parcels)
    check(
        not any(play.stage.warehouse.received(number) for number in play.unheard),
        "it never heard of the rolled back",
        play.unheard,
    )
    made, gone, waits = (play.expects[status] for status in (Status.SUCCEEDED, Status.EXPIRED, Status.PENDING))
    said = f"{made} made, {gone} expired, {waits} left for you"
    return f"Done in {seconds:.1f} s: {len(parcels)} orders, {len(play.attempts)} calls: {said}; 0 lost."


def _print_dashboard(stage: Stage, database_url: str | None) -> None:
    click.echo("See it in a browser:")
    click.echo(f"   {' && '.join([*entering(stage.folder, database_url), f'{command_words()} web'])}")


def _by_status(numbers: dict[Status, int]) -> str:
    return ", ".join(f"{numbers[one]} {one.value}" for one in Status if numbers.get(one))
