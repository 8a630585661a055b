"""Arguments that are too long to be read with every claim: they are read afterwards, up to a number of bytes.

A claim is of hundreds of attempts, whatever they weigh. Were their arguments read with it, a thousand attempts of a
megabyte would fill the memory of the worker.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Engine, Table, bindparam, select

from async_task.database.sizes import octet_length
from async_task.database.transactions import transaction_on
from async_task.queue.claim import Claim

CLAIM_BYTES = 8_000_000
"""How many bytes of arguments a worker thread keeps in memory for its next calls: that of one call at least."""


def weight_of(claims: Sequence[Claim]) -> int:
    """How long the arguments of these are together."""
    return sum([len(one.encoded_args) for one in claims])


def is_loaded(claims: Sequence[Claim]) -> bool:
    """Whether all their arguments were read with them."""
    return "" not in [one.encoded_args for one in claims]


def load_arguments(
    where: Engine | Connection, table: Table, claims: Sequence[Claim]
) -> tuple[list[Claim], list[Claim]]:  # fmt: skip
    """Read the arguments that were not read with these claims, all of one claim id.

    Returns the claims of which all is read, in order; and those that the caller releases, because they weigh too much.
    A claim that is ours no longer is in neither.
    """
    heavy = [one for one in claims if not one.is_loaded]
    given = {"a_claim": heavy[0].claim_id}
    with transaction_on(where) as connection:
        found: Any = connection.execute(_sizes(table), given | {"ids": [one.id for one in heavy]}).all()
        sizes: dict[Any, int] = dict(found)
        most = CLAIM_BYTES - weight_of(claims)
        chosen = list(_chosen([one for one in heavy if one.id in sizes], sizes, most))
        rows = connection.execute(_texts(table), given | {"ids": chosen}).all()
    texts = {row.id: {"encoded_args": row.method_args, "encryptor": row.encryptor} for row in rows}
    loaded = [
        one if one.is_loaded else one._replace(**texts[one.id]) for one in claims if one.is_loaded or one.id in texts
    ]
    return loaded, [one for one in heavy if one.id in sizes and one.id not in texts]


def _chosen(heavy: Sequence[Claim], sizes: dict[Any, int], most: int) -> Iterator[Any]:
    """The ids of the first of these, as many as weigh `most`; one at least."""
    weight = 0
    for one in heavy:
        weight += sizes[one.id]
        if weight > most and one is not heavy[0]:
            return
        yield one.id


@lru_cache(maxsize=64)
def _sizes(table: Table) -> Any:
    return _select(table, octet_length(table.c.method_args))


@lru_cache(maxsize=64)
def _texts(table: Table) -> Any:
    return _select(table, table.c.method_args, table.c.encryptor)


def _select(table: Table, *columns: Any) -> Any:
    """Of those of `ids` that are claimed under `a_claim`."""
    ids: Any = bindparam("ids", expanding=True)
    a_claim = bindparam("a_claim", type_=table.c.claim_id.type)
    return select(table.c.id, *columns).where(table.c.id.in_(ids), table.c.claim_id == a_claim)
