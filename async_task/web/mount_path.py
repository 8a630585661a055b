"""The path below which the dashboard is mounted, where what is around it does not say so."""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from async_task.errors import ConfigurationError

_PATH = re.compile(r"(/[\w~-][\w.~-]*)+", re.ASCII)


class MountPath:
    """An ASGI application around another one, for a framework that takes the path of a mounted application off `path`
    and does not add it to `root_path`, as Litestar does. The application inside finds both as ASGI has them.

    `base_path`: that path, like /jobs. Where both have it already, nothing is changed. Raises ConfigurationError for
    anything that is no such path.
    """

    def __init__(self, app: ASGIApp, base_path: str) -> None:
        _check(base_path)
        self._app, self._base_path = app, base_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "path" in scope and not self._is_known(scope):
            scope = {**scope, **self._paths(scope)}
        await self._app(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        root = scope.get("root_path", "")
        return root.endswith(self._base_path) and f"{scope['path']}/".startswith(f"{root}/")

    def _paths(self, scope: Scope) -> dict[str, str]:
        root, path = scope.get("root_path", "").rstrip("/") + self._base_path, scope["path"]
        # Litestar adds a slash to every path below a mount.
        return {"root_path": root, "path": root + (path if path == "/" else path.removesuffix("/"))}


def with_whole_path(app: ASGIApp) -> ASGIApp:
    """The application, whose `path` begins with its `root_path`. A mount of Starlette or FastAPI has them otherwise
    behind a proxy that takes a prefix off: the mount's own path is then in both, and the prefix in `root_path` alone.
    """

    async def whole(scope: Scope, receive: Receive, send: Send) -> None:
        # The mount says which prefix it has found. By the paths alone, nobody can tell its path from a page of ours.
        root, path, prefix = scope.get("root_path", ""), scope.get("path"), scope.get("app_root_path", "")
        is_whole = path is None or f"{path}/".startswith(f"{root}/")
        if prefix and not is_whole and f"{prefix}{path}/".startswith(f"{root}/"):
            scope = {**scope, "path": prefix + path}
        await app(scope, receive, send)

    return whole


def _check(base_path: object) -> None:
    if not isinstance(base_path, str) or not _PATH.fullmatch(base_path):
        raise ConfigurationError(f"base_path is a path like /jobs, without a slash at its end, not {base_path!r}")
