"""Make the missing tables of the shop: `python -m shop.migrate`, once before the processes of a release start.

A shop with data runs `alembic upgrade head` here; `async-task install` and `upgrade` write its revisions.
"""

from shop.app import create_tables, outbox

if __name__ == "__main__":
    create_tables()
    print(f"The tables of the shop are in {outbox.address}.")
