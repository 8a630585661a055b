"""The dashboard of an application."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from importlib import import_module
from typing import Any

from async_task.application.health import ApplicationHealth
from async_task.errors import ConfigurationError

Message = MutableMapping[str, Any]
ASGIApp = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


class ApplicationDashboard(ApplicationHealth):
    """What people see and do in a browser."""

    def dashboard(
        self,
        *,
        authorize: Callable[[Any], Any],
        read_only: bool = False,
        open_metrics: bool = False,
        base_path: str | None = None,
        settings: Mapping[str, tuple[str, str]] | None = None,
    ) -> ASGIApp:
        """The dashboard, an ASGI application to mount; it needs `async-task[web]`.

            app.mount("/jobs", outbox.dashboard(authorize=lambda request: Access.read(request.user.name)))

        `authorize(request)`: returns what the person behind a request may see and do, an `Access`, or an awaitable of
        one. It is called with Starlette's Request, on a thread if it is a plain function. `read_only`: nobody may
        change anything. `open_metrics`: whether /metrics, which names queues and targets, is read without asking
        `authorize`, as /healthz and /readyz are. `base_path`: the path below which it is mounted, like /jobs, for a
        framework that does not say so in `root_path`, such as Litestar. `settings`: those of this process that the page
        System shows beside those of the application: by name, the value without secrets, and where it comes from.
        Raises ConfigurationError if the extra is not installed, and for an invalid argument.
        """
        try:
            # By name: the library works without a web framework, and nothing in it imports the package above it.
            web = import_module("async_task.web.dashboard")
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"the dashboard needs the module {error.name!r}, which is not installed: install async-task[web]"
            ) from error
        # Few statements, and perhaps behind a pooler in transaction mode, where prepared ones are lost.
        self._source.stop_preparing()
        app: ASGIApp = web.dashboard(
            self, authorize=authorize, read_only=read_only, open_metrics=open_metrics, base_path=base_path,
            settings=settings or {},
        )  # fmt: skip
        return app
