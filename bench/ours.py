"""An operation that does nothing: the whole failure layer around an empty body."""

from tasks import operation
from tasks.payloads import Id


@operation(name="bench.noop")
def noop(order_id: Id) -> None:
    """Do nothing."""
