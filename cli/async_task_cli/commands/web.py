"""`async-task web`."""

import logging
import re
from importlib.util import find_spec
from typing import Any

import click

from async_task_cli.actor import as_actor
from async_task_cli.application import existing
from async_task_cli.commands.config import shown_settings
from async_task_cli.faults import CONFIGURATION, Refusal
from async_task_cli.identity import BASIC, PROXY_HEADER, TOKEN, Identity, read_password
from async_task_cli.logs import JSON, log_lines, logged
from async_task_cli.options import SETTINGS, Wanted, reaching
from async_task_cli.serving import below, listening, serve, url_of

logger = logging.getLogger("async_task")
NEEDED = ("starlette", "jinja2", "uvicorn", "markdown_it")
"""Modules that the extra `web` installs."""


class MountPath(click.ParamType):  # type: ignore[type-arg]
    """A path such as /jobs, without a slash at its end; / alone is the root."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value != "/" and not re.fullmatch(r"(/[\w~-][\w.~-]*)+", value, re.ASCII):
            self.fail(f"{value!r}: write a path like /jobs", param, ctx)
        return str(value)


def _print_hash(ctx: click.Context, param: click.Parameter, is_wanted: bool) -> None:
    if not is_wanted:
        return
    from async_task.web.security.users import hash_password

    password = read_password()
    if not password:
        raise click.UsageError("--hash-password reads a password from standard input, and there was none")
    click.echo(hash_password(password))
    ctx.exit()


@click.command("web", context_settings=SETTINGS)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="HOST", help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=8011, show_default=True, metavar="N",
    help="Port to listen on; 0: any free one.",
)  # fmt: skip
@click.option("--path", type=MountPath(), default="/", metavar="PATH", help="Serve it below this path, like /jobs.")
@click.option("--auth", type=click.Choice([BASIC, TOKEN, PROXY_HEADER]), help="How people say who they are; see above.")
@click.option("--proxy-header", metavar="NAME", help="The header in which a proxy names the user.")
@click.option(
    "--trusted-proxy", "proxies", metavar="ADDRESS", multiple=True,
    help="Believe that header from this address or network [default: loopback]; may be repeated.",
)  # fmt: skip
@click.option("--insecure-open", "is_open", is_flag=True, help="Let everybody who reaches the port do everything.")
@click.option("--read-only", is_flag=True, help="Let nobody change anything or see arguments.")
@click.option("--access-log", is_flag=True, help="Log each request, with its query.")
@click.option(
    "--hash-password", is_flag=True, is_eager=True, expose_value=False, callback=_print_hash,
    help="Read a password, print its hash for the list of users, and end.",
)  # fmt: skip
@logged
@as_actor
@reaching
def web(
    wanted: Wanted, host: str, port: int, path: str, read_only: bool, access_log: bool, log_format: str | None,
    service: str | None, **identity: Any,
) -> int:  # fmt: skip
    """Serve the dashboard until SIGTERM or SIGINT. Needs async-task[web].

    It listens on 127.0.0.1, where everybody on this machine may do everything, in the name of --actor. Another host
    needs --auth or --insecure-open.

    \b
    --auth basic         names and passwords: ASYNC_TASK_WEB_USERS="anna:secret,bob:..."
    --auth token         one token of 20 characters or more: ASYNC_TASK_WEB_TOKEN;
                         sent as `Authorization: Bearer`, or once in a form
    --auth proxy-header  a proxy has asked, and names the user in --proxy-header NAME

    With _FILE at the end of its name, such a variable names a file; that of users has one name:password a line. The
    users in ASYNC_TASK_WEB_READERS="bob,eve" only read.

    The exit code is 143 after SIGTERM and 130 after SIGINT. It is 69 if the database is away at the start, or the port
    is in use, and 78 if tables, keys or settings do not fit.
    """
    who = Identity(**identity)
    who.check(host)
    _check_extra()
    if log_format is not None:
        log_lines(log_format, service or "web")
    authorize = who.authorize()
    with existing(wanted) as app, listening(host, port) as listener:
        log_lines(log_format, service or "web")
        words = f"Listening on {url_of(listener, path)}"
        dashboard = app.dashboard(authorize=authorize, read_only=read_only, settings=shown_settings(app, wanted))
        serve(below(path, dashboard), listener, access_log=access_log, began=lambda: _tell(words, log_format))
    return 0


def _check_extra() -> None:
    missing = [one for one in NEEDED if find_spec(one) is None]
    if missing:
        words = f"the dashboard needs the module {missing[0]!r}, which is not installed: install async-task[web]"
        raise Refusal(words, CONFIGURATION)


def _tell(words: str, log_format: str | None) -> None:
    if log_format == JSON:
        logger.info(words)
    else:
        click.echo(f"{words} (Ctrl-C ends it)", err=True)
