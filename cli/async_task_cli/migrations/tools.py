"""Which tool carries out the revisions of an Alembic tree: Alembic, or that of a framework. Its env.py tells."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tool:
    """`upgrade`: the command that carries them out. `lines`: what env.py says so that autogenerate sees our ready-made
    tables beside those that it sees already; None where that is its `target_metadata`, as Alembic writes it.
    `settings`: the attributes of Alembic's configuration that only this tool sets."""

    upgrade: str
    lines: tuple[str, ...] | None = None
    settings: tuple[str, ...] = ()


ALEMBIC = Tool("alembic upgrade")
FLASK_MIGRATE = Tool(
    "flask db upgrade",
    (
        "from async_task import metadata as async_task_metadata", "", "def get_metadata():",
        "    return [target_db.metadatas[None], async_task_metadata]",
    ),
)  # fmt: skip
ADVANCED_ALCHEMY = Tool(
    "alchemy --config MODULE.NAME upgrade",
    (
        "from async_task import metadata as async_task_metadata", "",
        "        target_metadata=[metadata_registry.get(config.bind_key), async_task_metadata],  # in both places",
    ),
    (
        "bind_key", "compare_type", "db_url", "engine", "render_as_batch", "user_module_prefix", "version_table_name",
        "version_table_pk", "version_table_schema",
    ),
)  # fmt: skip


def tool_of(env: str) -> Tool:
    """The tool of the tree with this text of env.py, for one database."""
    if "def get_metadata():" in env and "current_app" in env:
        return FLASK_MIGRATE
    if re.search(r"^from advanced_alchemy\b", env, re.MULTILINE) and "metadata_registry.get(config.bind_key)" in env:
        return ADVANCED_ALCHEMY
    return ALEMBIC
