"""What came of the demo: the upstreams' own journals against the shop's own database."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Self

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reliability.dead_letters import Filter, Letter, dead_letters
from reliability.parking import parking
from sandbox import crawl_report, video_report
from sandbox.load import CRAWL, REFUSED, UPDATE_DEAL
from sandbox.stack import Stack
from sandbox.video_report import Sight, listed
from tasks import app

ENDED = {"SUCCESS", "FAILURE"}
PAUSE = 0.5  # seconds in which the portal's bucket leaks one request
SHOWN = 10  # findings; more of the same help nobody


@dataclass(frozen=True, slots=True)
class Report:
    """Where each of some jobs stands, and what waits beside them; *letters* also settled ones."""

    jobs: Mapping[str, str]  # job → task
    states: Mapping[str, str]  # job → state of its result
    outcomes: Mapping[str, str]  # job → the word in its result
    queued: int
    running: int
    parked: int
    letters: Sequence[Letter]

    @classmethod
    def now(cls, jobs: Mapping[str, str]) -> Self:
        """Look at the results, the queue, the parked jobs and the dead letters."""
        metas = _results(list(jobs))
        with app.connection_for_read() as connection:
            channel = connection.default_channel
            queued = sum(channel._size(queue) for queue in app.amqp.queues)  # noqa: SLF001
            running = channel.plain.hlen(channel.key(channel.unacked_key))
        return cls(
            jobs=dict(jobs),
            states={job: meta.get("status", "PENDING") for job, meta in metas.items()},
            outcomes={
                job: meta["result"].get("outcome", "")
                for job, meta in metas.items()
                if meta.get("status") == "SUCCESS"
            },
            queued=queued,
            running=running,
            parked=parking().count(),
            letters=list(dead_letters().each(Filter(state="all"))),
        )

    @property
    def ended(self) -> int:
        """How many jobs have come to their end."""
        return sum(1 for state in self.states.values() if state in ENDED)

    @property
    def settled(self) -> bool:
        """Whether all have, and nothing is on its way anywhere."""
        return self.ended == len(self.jobs) and not (self.queued or self.running or self.parked)

    @property
    def dead(self) -> list[Letter]:
        """The letters that wait for a person."""
        return [letter for letter in self.letters if letter.state == "open"]

    def ends(self, task: str) -> Counter[str]:
        """Count the jobs of *task* that are done by the word in their result."""
        return Counter(word for job, word in self.outcomes.items() if self.jobs[job] == task)

    @property
    def news(self) -> str:
        """Say in one line what goes on."""
        return (
            f"queued {self.queued}  running {self.running}  parked {self.parked}"
            f"  dead {len(self.dead)}"
        )


def all_jobs(stack: Stack) -> dict[str, str]:
    """Return every job that Flower has heard of, also those that others have sent: job → task.

    Not those of beat: one that nobody comes to in time never ends, and the next one does the same.
    """
    login = httpx.BasicAuth(*stack.flower_login.split(":", 1))
    answer = httpx.get(
        f"{stack.url('flower')}/api/tasks", auth=login, timeout=30, trust_env=False
    ).raise_for_status()
    named = {job: seen["name"] for job, seen in answer.json().items() if seen["name"]}
    return {job: name for job, name in named.items() if not name.startswith("upkeep.")}


def compare(
    report: Report,
    stack: Stack,
    portal: Mapping[str, Any],
    sight: Sight,
    crawls: crawl_report.Sight,
    seconds: float,
) -> list[str]:
    """Return what is wrong: jobs lost, effects doubled, or an upstream that tells another story."""
    findings = [f"{job} ({report.jobs[job]}) never ended" for job in _unended(report)]
    for kind in ("deals", "contacts", "lines"):
        findings += [f"doubled in the portal: {kind} {row}" for row in portal["duplicates"][kind]]
    if portal["limit_answers"]:
        findings.append(f"the portal's limit was broken {portal['limit_answers']} times")
    return [
        *findings,
        *_letters_differ(report),
        *_differences(stack),
        *video_report.compare(sight, report.letters, seconds),
        *crawl_report.compare(crawls, report.ends(CRAWL)),
    ]


def _letters_differ(report: Report) -> Iterator[str]:
    buried = {letter.message_id for letter in report.letters}
    failed = {job for job, state in report.states.items() if state == "FAILURE"}
    yield from (f"{job} failed, but is no dead letter" for job in failed - buried)
    expected = Counter({(UPDATE_DEAL, str(REFUSED)), *video_report.expected_dead()})
    for letter in report.dead:
        task, order = letter.message_body.task, str(letter.message_body.kwargs.get("order_id"))
        if expected[task, order]:
            expected[task, order] -= 1
        elif not video_report.killed(letter):
            yield f"{task} {letter.message_id} died: {letter.error_message}"
    yield from (f"{task} of order {order} is no dead letter" for task, order in +expected)


def _unended(report: Report) -> list[str]:
    return [job for job, state in report.states.items() if state not in ENDED]


def _differences(stack: Stack) -> list[str]:
    """Compare every order and every profile of the shop with what the portal shows."""
    deals = {row["ORIGIN_ID"]: row for row in _rows(stack, "deal")}
    contacts = {row["ID"]: row for row in _rows(stack, "contact")}
    by_origin = {row["ORIGIN_ID"]: row for row in contacts.values()}
    findings = []
    with sqlite3.connect(stack.folder / "shop.db") as shop:
        shop.row_factory = sqlite3.Row
        names = {row["key"]: row for row in shop.execute("SELECT * FROM profiles")}
        for order in shop.execute("SELECT * FROM orders"):
            deal = deals.pop(order["key"], None)
            if deal is None:
                findings.append(f"order {order['key']} has no deal")
            else:
                findings += _deal_differs(order, deal, contacts)
    findings += [f"deal {row['ID']} belongs to no order" for row in deals.values()]
    for key, profile in names.items():
        mailboxes = [row for row in contacts.values() if _has(row, "EMAIL", profile["email"])]
        if len(mailboxes) != 1:
            findings.append(f"{len(mailboxes)} contacts have the e-mail of user {key}")
        elif key in by_origin and mailboxes[0]["ORIGIN_ID"] != key:
            findings.append(f"user {key} has a contact beside the one with the same e-mail")
    return findings


def _deal_differs(
    order: sqlite3.Row, deal: Mapping[str, Any], contacts: Mapping[str, Any]
) -> list[str]:
    same = {"TITLE": order["title"], "STAGE_ID": order["stage"]}
    findings = [
        f"order {order['key']}: {name} is {deal[name]!r}, not {value!r}"
        for name, value in same.items()
        if value is not None and deal[name] != value
    ]
    if order["key"] != str(REFUSED) and Decimal(deal["OPPORTUNITY"]) != Decimal(order["amount"]):
        findings.append(f"order {order['key']}: {deal['OPPORTUNITY']}, not {order['amount']}")
    if order["user_id"] is not None and deal["CONTACT_ID"] not in contacts:
        findings.append(f"order {order['key']}: its deal has no contact")
    return findings


def _has(contact: Mapping[str, Any], kind: str, value: str) -> bool:
    return any(row["VALUE"] == value for row in contact.get(kind) or ())


def _rows(stack: Stack, entity: str) -> list[dict[str, Any]]:
    """Read everything from the portal, page by page."""
    rows: list[dict[str, Any]] = []
    with httpx.Client(base_url=stack.env["BITRIX_WEBHOOK_URL"], trust_env=False) as client:
        while True:
            last = rows[-1]["ID"] if rows else 0
            asked = {
                "select": ["*", "EMAIL", "PHONE"],
                "filter": {">ID": last},
                "order": {"ID": "ASC"},
                "start": -1,
            }
            answer = client.post(f"crm.{entity}.list", json=asked)
            if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                time.sleep(PAUSE)  # the jobs have left the portal's bucket full
                continue
            page = answer.raise_for_status().json()["result"]
            rows += page
            if not page:
                return rows


def _results(jobs: list[str]) -> dict[str, dict[str, Any]]:
    backend = app.backend
    stored = backend.mget([backend.get_key_for_task(job) for job in jobs]) if jobs else []
    return {
        job: backend.decode_result(item) if item else {}
        for job, item in zip(jobs, stored, strict=True)
    }


def print_report(
    console: Console,
    report: Report,
    facts: Mapping[str, str],
    findings: Sequence[str],
    *,
    accepted: int,
) -> None:
    """Print the tables, the *facts* by title, and the verdict."""
    console.print()
    console.print(_operations(report))
    console.print()
    if report.dead:
        console.print(_dead(report))
        console.print()
    grid = Table.grid(padding=(0, 2))
    for title, text in facts.items():
        grid.add_row(title, text)
    console.print(grid, highlight=False)
    console.print()
    for finding in findings[:SHOWN]:
        console.print(f"[red]✗[/] {escape(finding)}", highlight=False)
    if len(findings) > SHOWN:
        console.print(f"[red]✗[/] … and {len(findings) - SHOWN} more")
    if not findings:
        others = len(report.jobs) - accepted
        console.print(
            f"[green]✓[/] {accepted} jobs accepted, {others} more came of them, and all have ended"
            "\n[green]✓[/] nothing lost, nothing doubled, every credit accounted for, "
            "every bookmark stored once",
            highlight=False,
        )


def facts(
    report: Report,
    portal: Mapping[str, Any],
    sight: Sight,
    crawls: crawl_report.Sight,
    *,
    refused: int,
    seconds: float,
) -> dict[str, str]:
    """Return what the upstreams have counted, and what went wrong on purpose, by title."""
    doubled = sum(len(rows) for rows in portal["duplicates"].values())
    doubts = sum(video_report.killed(letter) for letter in report.letters)
    return {
        "portal": f"{portal['operations']} operations in {portal['requests']} requests, "
        f"{portal['limit_answers']} limit answers, fullest bucket {portal['max_bucket']:.0f} of 50"
        f"\n{portal['deals']} deals, {portal['contacts']} contacts, doubled {doubled}"
        f"\n{listed(portal['by_method'])}",
        **video_report.lines(sight),
        **crawl_report.lines(crawls),
        "faults": f"portal: {listed(portal['faults_fired'])}"
        f"\nKIE: {listed(sight.kie['faults_fired'])}, {listed(video_report.planned())}"
        f"\nTelegram: {listed(sight.telegram['faults_fired'])}"
        f"\nX: {listed(crawls.summary['faults_fired'])}"
        f"\none kill -9 of the worker; calls in doubt since then: {doubts}",
        "refused": f"{refused} in the shop, by delay()",
        "time": f"{seconds:.0f} s",
    }


def _operations(report: Report) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("operation", "jobs", "done", "parked", "dead", "outcomes"):
        table.add_column(name, justify="left" if name in {"operation", "outcomes"} else "right")
    by_task: dict[str, list[str]] = defaultdict(list)
    for job, task in report.jobs.items():
        by_task[task].append(job)
    dead = Counter(letter.message_body.task for letter in report.dead)
    settled = Counter(letter.message_body.task for letter in report.letters)
    settled.subtract(dead)
    parked = Counter(job.task for job in parking().jobs())
    for task, jobs in sorted(by_task.items()):
        words = Counter(report.outcomes[job] for job in jobs if job in report.outcomes)
        done = words.total()
        words["settled"] = settled[task]
        table.add_row(
            task,
            str(len(jobs)),
            str(done),
            str(parked[task]),
            str(dead[task]),
            ", ".join(f"{word} {count}" for word, count in (+words).most_common()),
        )
    return table


def _dead(report: Report) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    for name in ("fingerprint", "dead", "task", "why"):
        table.add_column(name)
    for group in dead_letters().groups():
        why = next(x.error_message for x in report.dead if x.fingerprint == group.fingerprint)
        table.add_row(group.fingerprint, str(group.count), group.task, why)
    return table
