"""`celery -A tasks videos …`: what users have got for it."""

from __future__ import annotations

from dataclasses import asdict

import click

from admin.cli.common import guarded, print_json, the_database, who
from storage import videos as paid
from tasks.video import settle

PRIVATE = {"image_url", "prompt"}  # of a user, and no business of an operator


@click.group()
def videos() -> None:
    """The videos that users have paid for."""


@videos.command("show")
@click.argument("order_id")
@guarded
def videos_show(order_id: str) -> None:
    """Show what has become of one, as JSON; not the photo, nor what was asked for."""
    with the_database():
        video = paid.get(order_id)
    if video is None:
        raise click.ClickException(f"no video of order {order_id} was asked for")
    print_json({name: value for name, value in asdict(video).items() if name not in PRIVATE})


@videos.command("settle")
@click.argument("order_id")
@click.option("--arrived", "arrived", flag_value=True, default=None, help="It has arrived.")
@click.option("--refund", "arrived", flag_value=False, help="Give the credits back.")
@guarded
def videos_settle(order_id: str, arrived: bool | None) -> None:
    """Decide about an unconfirmed video; its letters are settled with it."""
    if arrived is None:
        raise click.UsageError("say --arrived or --refund")
    with the_database():
        video = settle(order_id, arrived=arrived, by=who())
    if video is None:
        raise click.ClickException(f"no video of order {order_id} is unconfirmed")
    click.echo(f"order {order_id}: {video.state}")
