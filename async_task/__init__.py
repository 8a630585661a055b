"""async-task: a call that must happen because data changed, happens.

Every public name is imported from here. `public.py` lists them; it is loaded when the first one is asked for, so that
the command line answers `--help` without SQLAlchemy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from async_task.public import *  # noqa: F403 - it holds nothing but the public names

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name.startswith("__") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    public = vars(import_module(f"{__name__}.public"))
    if name == "__all__":
        return sorted(one for one in public if not one.startswith("_"))
    if name not in public:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = public[name]
    return public[name]


def __dir__() -> list[str]:
    return [*globals(), *__getattr__("__all__")]
