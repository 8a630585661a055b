"""The pages of the shop."""

from flask import Blueprint

from shop.jobs import Warehouse, pack
from shop.models import Attempt, Order, db

orders = Blueprint("orders", __name__)


@orders.post("/orders/<int:number>")
def place(number: int) -> tuple[dict[str, int], int]:
    db.session.add(Order(number=number))
    Attempt.call(Warehouse.tell, number)  # in the transaction that db.session has begun
    Attempt.options(session=db.session, queue="packing").call(pack, number)
    db.session.commit()
    return {"number": number}, 201


@orders.get("/orders/<int:number>")
def show(number: int) -> dict[str, object]:
    order = db.get_or_404(Order, number)
    return {"number": order.number, "packed_in": order.packed_in}
