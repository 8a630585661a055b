"""The prompt of `make console`: `python -i -m shop.console`, with the names of the shop imported."""

from shop.app import Session, app, create_tables
from shop.models import Attempt, Order
from shop.orders import place_order

__all__ = ["Attempt", "Order", "Session", "app", "place_order"]

create_tables()
print(
    f"The shop ({app.address}), with app, Session, Attempt, Order, place_order",
    "Place an order:  with Session.begin() as session: place_order(session, 'Ada', 1990)",
    "Make its calls:  app.run_batch()    (first: cd examples; python -m shop.warehouse)",
    sep="\n",
)
