"""`celery -A tasks credits …`: what users have paid for."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal

import click

from admin.cli.common import SHOWN, as_json, limited, plain, print_json, print_rows, the_database
from classifiers.errors import InvalidData
from storage import credits as ledger


@click.group()
def credits() -> None:
    """The credits of users: what they have, and what came and went."""


def _user(_: click.Context, __: click.Parameter, user_id: str) -> str:
    if not user_id:
        raise click.BadParameter("a user has an id")
    return user_id


def _amount(_: click.Context, __: click.Parameter, amount: str) -> Decimal:
    try:
        return ledger.exact(amount)
    except InvalidData as error:
        raise click.BadParameter(error.detail) from error


user = click.argument("user_id", metavar="USER", callback=_user)


@credits.command("show")
@user
@limited
@as_json
def credits_show(user_id: str, as_json: bool, limit: int | None) -> None:
    """Show what a user has, and the transfers that led to it, newest first."""
    with the_database():
        balance = ledger.balance(user_id)
        entries = ledger.history(user_id, limit or (None if as_json else SHOWN))
    rows = [asdict(entry) | {"at": entry.at.isoformat(timespec="seconds")} for entry in entries]
    if as_json:
        print_json({"user_id": user_id, "balance": balance, "history": rows})
        return
    click.echo(f"user {user_id} has {balance} credits")
    columns = plain("at", "kind", "amount", "balance_after", "reason", "key")
    print_rows(rows, columns, as_json=False, nothing="no transfers")


@credits.command("grant")
@user
@click.argument("amount", callback=_amount)
@click.option("--reason", required=True, help="Why; the user's history shows it.")
@click.option("--key", help="Given twice with one key, credits come once.")
def credits_grant(user_id: str, amount: Decimal, reason: str, key: str | None) -> None:
    """Give credits to a user."""
    with the_database():
        balance = ledger.grant(user_id, amount, reason, key=key)
    click.echo(f"user {user_id} has {balance} credits")
