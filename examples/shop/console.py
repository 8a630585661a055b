"""The prompt of `make console`: `python -i -m shop.console`, with the names of the shop imported."""

from shop.app import Session, create_tables, outbox
from shop.models import Attempt, Order
from shop.orders import place_order

__all__ = ["Attempt", "Order", "Session", "outbox", "place_order"]

create_tables()
print(
    f"The shop ({outbox.address}), with outbox, Session, Attempt, Order, place_order",
    "Place an order:  with Session.begin() as session: place_order(session, 'Ada', 1990)",
    "Make its calls:  outbox.run_batch()   (first: cd examples; python -m shop.warehouse)",
    sep="\n",
)
