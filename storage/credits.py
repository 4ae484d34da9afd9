"""The ledger of credits: what users were granted, charged and given back, each exactly once.

Double entry: every transfer debits one account and credits another. Both entries stand in its one
row, so that they cannot differ:

  grant     issued    → user:<id>
  charge    user:<id> → spent
  refund    spent     → user:<id>   of one charge: all of it, once, to whom it was taken from

A transfer has a unique key, and stays as it was written. What a user has is kept beside, and is
never less than nothing; `issued` and `spent` are sums only, for every transfer would queue for
their rows. Constraints of the tables see to the three kinds, the keys, the one refund of a charge
and the balances, whatever the code here does.

Who moves credits of a user locks the user's balance first, so the transfers of one user happen one
after another. A transaction that moves credits of several takes them in the order of their ids,
or two such could wait for each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict
from uuid import uuid4

from sqlalchemy import func, select, union_all, update

from classifiers.errors import InvalidData, UserError
from storage import database
from storage.models import credit_balances as balances
from storage.models import credit_transfers as transfers

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import ColumnElement, Connection, Row

Amount: TypeAlias = Decimal | int | float | str
UserId: TypeAlias = int | str
Kind = Literal["grant", "charge", "refund"]

SERVICE = "credits"
ISSUED, SPENT = "issued", "spent"  # where credits come from, and where they go to
NOTHING = Decimal("0.00")
_KINDS: dict[str, Kind] = {ISSUED: "grant", SPENT: "refund"}  # by the account that is debited
MOST = Decimal(1_000_000_000)  # of one transfer; more is a slip, and 64 bits hold the sum of many


@dataclass(frozen=True, slots=True)
class Entry:
    """A transfer as its user sees it: *amount* is negative where it was taken."""

    at: datetime
    kind: Kind
    amount: Decimal
    balance_after: Decimal
    reason: str
    key: str


class Totals(TypedDict):
    """Sums over all users: granted = charged − refunded + balances."""

    granted: Decimal
    charged: Decimal
    refunded: Decimal
    balances: Decimal


def exact(amount: Amount) -> Decimal:
    """The amount with its two places; a float is taken as it prints (0.1 is 0.10).

    Raises:
        InvalidData: no number, less than nothing, a third place, or more than `MOST`.
    """
    try:
        value = Decimal(str(amount))
    except (InvalidOperation, ValueError):  # the latter: an int of thousands of digits
        value = Decimal("NaN")
    if value.is_finite() and not value.is_signed() and value <= MOST:
        rounded = value.quantize(NOTHING)
        if rounded == value:
            return rounded
    raise InvalidData(
        f"an amount of credits is a number from 0 to {MOST} with at most two places",
        service=SERVICE,
    )


def grant(user_id: UserId, amount: Amount, reason: str, *, key: str | None = None) -> Decimal:
    """Give credits to a user, once per *key*; the user's balance then.

    Raises:
        InvalidData: the amount or id is none, or the key is of another transfer.
    """
    account, amount = _account(user_id), exact(amount)
    key = f"grant:{uuid4().hex}" if key is None else key
    with database.transaction() as connection:
        balance = _lock(connection, account)
        known = _find(connection, transfers.c.key == key)
        if known is None:
            return _move(connection, key, ISSUED, account, amount, balance, reason)
    if (known.debit, known.credit, known.amount) != (ISSUED, account, amount):
        raise _taken(key)
    return balance


def balance(user_id: UserId) -> Decimal:
    """What the user has; nothing, if we have never heard of the user."""
    statement = select(balances.c.balance).where(balances.c.account == _account(user_id))
    with database.read() as connection:
        return connection.execute(statement).scalar_one_or_none() or NOTHING


def charge(
    connection: Connection, user_id: UserId, amount: Amount, *, key: str, reason: str
) -> bool:
    """Take credits in the caller's transaction; False if it was done under that *key* before.

    Then the price of that time stays, even if it has changed since. A price of 0 is booked too.

    Raises:
        UserError: `insufficient_credits`; nothing has changed.
        InvalidData: the amount or id is none, or the key is of another user's or kind's transfer.
    """
    account, amount = _account(user_id), exact(amount)
    balance = _lock(connection, account)
    known = _find(connection, transfers.c.key == key)
    if known is not None and known.debit != account:
        raise _taken(key)
    if known is not None:
        return False
    if balance < amount:
        raise UserError(
            f"{amount} credits are needed, {balance} are available",
            reason="insufficient_credits",
            service=SERVICE,
            operation="charge",
        )
    _move(connection, key, account, SPENT, amount, balance, reason)
    return True


def refund(connection: Connection, *, of: str, key: str, reason: str) -> Decimal | None:
    """Give back what was charged under the key *of*, in the caller's transaction.

    The amount (0.00 for a charge of nothing), or None: it was given back before, or never charged.

    Raises:
        InvalidData: the key is of another transfer.
    """
    charged = _find(connection, transfers.c.key == of)
    if charged is None or charged.credit != SPENT:
        return None
    account: str = charged.debit
    amount: Decimal = charged.amount
    balance = _lock(connection, account)
    if _find(connection, transfers.c.refunds == of) is not None:
        return None
    _move(connection, key, SPENT, account, amount, balance, reason, refunds=of)
    return amount


def history(user_id: UserId, limit: int | None = 100) -> list[Entry]:
    """The user's newest transfers, newest first; all of them without a *limit*."""
    account = _account(user_id)
    # One ordered search per index: a condition on either would sort all that the user ever did.
    sides = (
        select(transfers).where(side == account).order_by(transfers.c.id.desc()).limit(limit)
        for side in (transfers.c.debit, transfers.c.credit)
    )
    both = union_all(*(select(side.subquery()) for side in sides)).subquery()
    with database.read() as connection:
        rows = connection.execute(select(both).order_by(both.c.id.desc()).limit(limit))
        return [_entry(row) for row in rows]


def totals() -> Totals:
    """The sums of the whole ledger as of one moment; it reads all of it."""

    def moved(which: ColumnElement[bool]) -> ColumnElement[Decimal | None]:
        return func.sum(transfers.c.amount).filter(which)

    statement = select(
        moved(transfers.c.debit == ISSUED).label("granted"),
        moved(transfers.c.credit == SPENT).label("charged"),
        moved(transfers.c.debit == SPENT).label("refunded"),
        select(func.sum(balances.c.balance)).scalar_subquery().label("balances"),
    )
    with database.read() as connection:
        row = connection.execute(statement).one()
    return Totals(
        granted=row.granted or NOTHING,
        charged=row.charged or NOTHING,
        refunded=row.refunded or NOTHING,
        balances=row.balances or NOTHING,
    )


def _account(user_id: UserId) -> str:
    if isinstance(user_id, bool) or not isinstance(user_id, int | str) or user_id == "":
        raise InvalidData("the id of a user is a text or a whole number", service=SERVICE)
    return f"user:{user_id}"


def _lock(connection: Connection, account: str) -> Decimal:
    """What the account holds; nobody else moves it before this transaction ends.

    A SELECT … FOR UPDATE would lock nothing while there is no row, and two first grants would meet.
    """
    if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        raise ValueError("credits move in a transaction; each statement alone would keep no lock")
    fresh = database.insert(balances, connection.dialect.name).values(
        account=account, balance=NOTHING
    )
    statement = fresh.on_conflict_do_update(
        index_elements=[balances.c.account], set_={"balance": balances.c.balance}
    )
    held: Decimal = connection.execute(statement.returning(balances.c.balance)).scalar_one()
    return held


def _find(connection: Connection, which: ColumnElement[bool]) -> Row[Any] | None:
    return connection.execute(select(transfers).where(which)).one_or_none()


def _move(
    connection: Connection,
    key: str,
    debit: str,
    credit: str,
    amount: Decimal,
    balance: Decimal,
    reason: str,
    *,
    refunds: str | None = None,
) -> Decimal:
    """Write a transfer and the change of its user's *balance*; the balance then."""
    account, change = (debit, -amount) if credit == SPENT else (credit, amount)
    fresh = database.insert(transfers, connection.dialect.name).values(
        key=key,
        debit=debit,
        credit=credit,
        amount=amount,
        balance_after=balance + change,
        refunds=refunds,
        reason=reason,
        at=database.now(),
    )
    statement = fresh.on_conflict_do_nothing(index_elements=[transfers.c.key])
    if connection.execute(statement.returning(transfers.c.id)).one_or_none() is None:
        raise _taken(key)
    connection.execute(
        update(balances)
        .where(balances.c.account == account)
        .values(balance=balances.c.balance + change)
    )
    return balance + change


def _taken(key: str) -> InvalidData:
    return InvalidData(f"the key {key} is of another transfer already", service=SERVICE)


def _entry(row: Row[Any]) -> Entry:
    kind = _KINDS.get(row.debit, "charge")
    amount = -row.amount if kind == "charge" else row.amount
    return Entry(row.at, kind, amount, row.balance_after, row.reason, row.key)
