"""`celery -A tasks gate …`: who may call which upstream."""

from __future__ import annotations

import click

from admin import repair, view
from admin.cli.common import as_json, guarded, plain, print_rows, who
from config.services import Service, services


@click.group()
def gate() -> None:
    """The gates: one per upstream, with its budget, breaker and pause."""


@gate.command("ls")
@as_json
@guarded
def gate_ls(as_json: bool) -> None:
    """List the gates."""
    columns = plain("service", "state", "budget_remaining", "retry_at", "note")
    print_rows(view.gates(), columns, as_json, "no gates")


def _service(_: click.Context, __: click.Parameter, name: str) -> Service:
    known = {service.name: service for service in services()}
    if name not in known:
        raise click.BadParameter(f"no upstream is called {name}; there are: {', '.join(known)}")
    return known[name]


upstream = click.argument("service", callback=_service)


@gate.command("pause")
@upstream
@click.option("--note", default="", help="Why; shown to everybody who looks.")
@guarded
def gate_pause(service: Service, note: str) -> None:
    """Keep every call away from an upstream; its jobs are parked, not failed."""
    view.gate_of(service).pause(by=who(), note=note)
    click.echo(f"{service.name} is paused")


@gate.command("resume")
@upstream
@guarded
def gate_resume(service: Service) -> None:
    """Open the gate; the jobs that wait for it come back in order, paced to the budget."""
    freed = repair.resume(service)
    click.echo(f"{service.name} is open, {freed} jobs come back")


@gate.command("reset")
@upstream
@guarded
def gate_reset(service: Service) -> None:
    """Forget the breaker's failures, held credentials and rate limits; a pause stays."""
    view.gate_of(service).reset()
    click.echo(f"{service.name} is reset")
