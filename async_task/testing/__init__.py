"""Tests of code that writes calls: what was written, performing it in the test's own transaction, and fakes.

    def test_order(client, session):
        client.post("/orders", json={"number": 17})
        assert_written(OrderClient.fulfill, order_number=17, session=session)
        perform_all(session)
        assert session.get(Order, 17).is_fulfilled

The pytest plugin gives these functions as fixtures. Nothing in the library imports this package.
"""

from async_task.encryption.conformance import check_encryptor as check_encryptor
from async_task.testing.assertions import assert_not_written as assert_not_written
from async_task.testing.assertions import assert_written as assert_written
from async_task.testing.assertions import written as written
from async_task.testing.modes import mode as mode
from async_task.testing.passed_time import advance as advance
from async_task.testing.performing import perform_all as perform_all
from async_task.testing.replacement import replaced as replaced

__all__ = [
    "advance",
    "assert_not_written",
    "assert_written",
    "check_encryptor",
    "mode",
    "perform_all",
    "replaced",
    "written",
]
