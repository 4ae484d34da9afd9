"""The console as the person on call meets it: in Chromium, on a night that went wrong."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from fixtures import night_shift as night
from fixtures.browser import DESKTOP, PHONE, Browser, browsing
from fixtures.night_shift import Shift, night_shift
from fixtures.pictures import PAGES, go_to
from fixtures.waiting import eventually
from redis import Redis
from selenium.webdriver import Keys

from config.settings import settings
from reliability.dead_letters import DeadLetters, Filter
from reliability.holds import Holds
from reliability.keys import COUNTS
from reliability.parking import Parking
from reliability.replays import Replays

CSRF = re.compile(r'name="csrf" value="([^"]+)"')
LINK = re.compile(r'href="([^"#]+)')
EVERYTHING = 400  # pages; the night has fewer, and a circle would have no end


@pytest.fixture(scope="module")
def shift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shift]:
    with night_shift(tmp_path_factory.mktemp("console")) as running:
        yield running


@pytest.fixture(scope="module")
def redis(shift: Shift) -> Redis:
    return shift.stack.redis.client()


@pytest.fixture(scope="module")
def window(shift: Shift) -> Iterator[Browser]:
    with browsing(shift.console) as browser:
        browser.prefer("light")
        yield browser


@pytest.fixture
def browser(window: Browser, shift: Shift) -> Browser:
    """A window as wide as a desk has, of somebody who has signed in."""
    window.resize(DESKTOP)
    window.driver.delete_all_cookies()
    window.sign_in(shift.token)
    window.complaints()
    window.requests()
    return window


class Visitor:
    """Somebody without a browser, who may sign in."""

    def __init__(self, shift: Shift) -> None:
        self._http = httpx.Client(base_url=shift.console, timeout=30, trust_env=False)
        self._token = shift.token

    def sign_in(self, token: str | None = None) -> httpx.Response:
        form = {"token": self._token if token is None else token, "name": "dana"}
        return self._http.post("/login", data=form)

    def get(self, path: str, **options) -> httpx.Response:
        return self._http.get(path, **options)

    def post(self, path: str, *, on: str = "/", follow: bool = True, **form: str) -> httpx.Response:
        """Send a form as the page *on* has it."""
        form["csrf"] = CSRF.search(self.get(on).text)[1]
        return self._http.post(path, data=form, follow_redirects=follow)

    def forge(self, path: str, **form: str) -> httpx.Response:
        return self._http.post(path, data=form)


@pytest.fixture
def stranger(shift: Shift) -> Visitor:
    return Visitor(shift)


@pytest.fixture
def operator(shift: Shift) -> Visitor:
    visitor = Visitor(shift)
    visitor.sign_in()
    return visitor


def told(answer: httpx.Response) -> str:
    """What the page says that the action did."""
    found = re.search(r'<p class="said[^>]*>(.*?)</p>', answer.text, re.DOTALL)
    return found[1] if found else f"nothing, with {answer.status_code}"


# -- who comes in


def test_the_right_token_leads_to_the_page_that_was_asked_for(window, shift):
    window.driver.delete_all_cookies()
    window.open("/gates")
    window.fill("#token", "not the token")
    window.press("Sign in")
    refusal = window.text
    window.fill("#name", "dana")
    window.fill("#token", shift.token)
    window.press("Sign in")

    assert "That is not the admin token." in refusal
    assert window.path == "/gates"
    assert window.one(".who").text == "dana"


def console_routes() -> list[tuple[str, str]]:
    from admin.console import create_console  # wants to know the queue when it is imported

    return [
        (method, context.path)
        for context in iter_route_contexts(create_console().routes)
        for method in sorted(context.methods or ())
    ]


@pytest.fixture
def routes(shift, monkeypatch) -> Iterator[list[tuple[str, str]]]:
    monkeypatch.setenv("REDIS_URL", shift.stack.redis.url)
    settings.cache_clear()
    yield console_routes()
    monkeypatch.undo()
    settings.cache_clear()


def test_nobody_gets_anything_without_a_session(routes, stranger):
    inner = [(method, path) for method, path in routes if path != "/login"]
    answers = [
        stranger.get(path) if method == "GET" else stranger.forge(path) for method, path in inner
    ]

    assert len(inner) > 25
    assert {answer.status_code for answer in answers} == {303}
    assert {urlsplit(answer.headers["location"]).path for answer in answers} == {"/console/login"}


def names(redis: Redis) -> set[str]:
    """What is in Redis, but for counts: those of what was done before come up to a second later."""
    return {name for name in redis.scan_iter() if not name.startswith(COUNTS)}


def test_no_form_of_another_site_does_anything(routes, operator, redis):
    before = names(redis), redis.hgetall("perennial:gate:kie")
    forms = {"id": "job-to-mend", "action": "resume", "arguments": "{}", "task": "video.generate"}
    posts = [path for method, path in routes if method == "POST" and path != "/login"]
    refused = [
        operator.forge(path.replace("{name}", "kie"), **forms, csrf=csrf)
        for path in posts
        for csrf in ("", "guessed")
    ]

    assert {answer.status_code for answer in refused} == {403}
    assert (names(redis), redis.hgetall("perennial:gate:kie")) == before


def test_a_cookie_is_only_for_the_console_and_out_of_reach_of_scripts(stranger):
    cookie = stranger.sign_in().headers["set-cookie"]

    assert {"HttpOnly", "Path=/console", "SameSite=strict", "Max-Age=28800"} <= set(
        cookie.split("; ")
    )
    assert "Secure" not in cookie


def test_over_https_a_cookie_stays_there(shift):
    behind_a_proxy = {"x-forwarded-proto": "https"}
    answer = httpx.post(
        f"{shift.console}/login",
        data={"token": shift.token},
        headers=behind_a_proxy,
        trust_env=False,
        timeout=30,
    )

    assert "Secure" in answer.headers["set-cookie"]


KEPT, NEVER = "public, max-age=86400", "no-store"


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/static/console.css", KEPT),
        ("/static/nothing.css", NEVER),
        ("/parked/a/static/b", NEVER),
        ("/", NEVER),
        ("/login", NEVER),
    ],
)
def test_only_files_are_kept_by_a_cache(stranger, operator, path, kept):
    for visitor in (stranger, operator):
        assert visitor.get(path).headers["cache-control"] == kept


def test_a_bug_of_ours_is_told_on_as_safe_a_page(routes, monkeypatch):
    from admin.console import mount, session

    def bug() -> None:
        raise ZeroDivisionError

    app = FastAPI()
    mount(app)
    monkeypatch.setattr(session, "require_token", bug)

    async def ask() -> httpx.Response:
        line = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=line, base_url="http://api") as visitor:
            return await visitor.get("/console/login")

    answer = asyncio.run(ask())

    assert answer.status_code == 500
    assert "This is a bug of the console" in answer.text
    assert {**answer.headers, **session.HEADERS, **session.NEVER_KEPT} == dict(answer.headers)


@pytest.mark.parametrize(
    "wanted",
    ["https://evil.example/", "//evil.example/", "/console/../..\\evil", "/webhooks/kie"],
    ids=["site", "no scheme", "backslash", "not ours"],
)
def test_a_login_leads_nowhere_else(shift, wanted):
    form = {"token": shift.token, "next": wanted}
    answer = httpx.post(f"{shift.console}/login", data=form, trust_env=False, timeout=30)

    assert answer.headers["location"] == "/console/"


def test_another_token_ends_every_session(routes, monkeypatch):
    from starlette.requests import Request
    from starlette.responses import Response

    from admin.console import session

    def asked(cookie: str) -> Request:
        cookies = [(b"cookie", cookie.partition(";")[0].encode())]
        scope = {"type": "http", "scheme": "http", "path": "/", "root_path": "", "method": "GET"}
        return Request(scope | {"headers": cookies, "query_string": b"", "server": ("h", 80)})

    def with_token(token: str) -> None:
        monkeypatch.setenv("ADMIN_TOKEN", token)
        settings.cache_clear()

    with_token("the first")
    answer = Response()
    session.sign_in(answer, asked(""), "  da\nna\x00 ")
    cookie = answer.headers["set-cookie"]
    known = session.operator_of(asked(cookie))
    with_token("the second")

    assert known.name == "dana"
    assert session.operator_of(asked(cookie)) is None


def test_who_guesses_has_to_wait_even_with_the_right_token(shift, redis):
    guesser = Visitor(shift)
    guesses = [guesser.sign_in(f"guess {n}").status_code for n in range(12)]
    right = guesser.sign_in()
    redis.delete(*redis.keys("perennial:console:wrong:*"))

    assert guesses == [401] * 10 + [429] * 2
    assert right.status_code == 429
    assert "Try again in 15 min" in right.text


def test_a_link_in_a_chat_leads_to_its_page(browser):
    browser.driver.get(f"data:text/html,<a href='{browser.home}/gates'>alert</a>")
    browser.press("alert")

    eventually(lambda: browser.path == "/gates")


def test_the_way_out_ends_the_session(browser):
    browser.press("Sign out")
    browser.open("/gates")

    assert browser.path == "/login?next=%2Fconsole%2Fgates"


# -- what is shown


def test_the_first_page_says_what_is_wrong_since_when_and_what_to_do(operator):
    shown = re.sub(r"(<[^>]+>|[ \n])+", " ", operator.get("/").text)

    assert "Nobody takes jobs from the queue telegram" in shown or "from any queue" in shown
    assert re.search(r"kie: paused by dana since .* the model is being changed", shown)
    assert "bitrix.create_deal: 37 jobs died of InvalidData." in shown
    assert "dies again of what was fixed in 1.4.0" in shown
    assert "has stopped by itself" in shown
    # Operation, ended well, died, retries, open letters; no-break spaces between thousands.
    assert re.search(r"bitrix.create_deal 18\u202f235 39 412 \d+ ", shown)


def test_every_link_leads_to_a_page(operator, shift):
    seen, ahead = set(), ["/"]
    broken = []
    while ahead and len(seen) < EVERYTHING:
        path = ahead.pop()
        answer = operator.get(path)
        if answer.status_code != 200:
            broken.append((path, answer.status_code))
        here = f"{shift.console}{path}"
        for link in LINK.findall(answer.text.replace("&amp;", "&")):
            there = urljoin(here, link)
            inner = there.removeprefix(shift.console)
            if there.startswith(f"{shift.console}/") and "refresh=" not in inner:
                shape = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "JOB", inner)
                if shape not in seen:
                    seen.add(shape)
                    ahead.append(inner)

    assert broken == []
    assert len(seen) > 40


def test_a_letter_that_is_html_is_shown_as_text(browser):
    browser.open("/dead-letters/job-hostile")

    assert "taken" not in browser.title
    assert night.HOSTILE in browser.text
    assert browser.all("main img, main script") == []
    assert browser.complaints() == []


def test_no_page_has_a_script_or_needs_one(operator):
    for path in PAGES.values():
        if path.startswith("/"):
            answer = operator.get(path)

            assert "script-src 'none'" in answer.headers["content-security-policy"]
            assert not re.search(r"<script|<[^>]*\s(on\w+|style)=|=\"javascript:", answer.text)


LOOK = """
const problems = [];
const name = e => e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim();
if (document.querySelectorAll('h1').length !== 1) problems.push('not one h1');
for (const e of document.querySelectorAll('input:not([type=hidden]), select, textarea, button, progress, meter'))
  if (!name(e)) problems.push('nameless ' + e.outerHTML.slice(0, 80));
for (const e of document.querySelectorAll('a')) if (!name(e)) problems.push('empty link ' + e.href);
for (const e of document.querySelectorAll('table'))
  if (!e.caption || [...e.querySelectorAll('th')].some(t => !t.scope)) problems.push('table without caption or scope');
const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) problems.push('two of ' + id);
return problems;
"""
# The contrast of every text that is shown with what lies behind it, by the formula of WCAG 2.
CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
canvas.canvas.width = canvas.canvas.height = 1;
const over = (below, colour) => {
  canvas.fillStyle = `rgb(${below})`; canvas.fillRect(0, 0, 1, 1);
  canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const behind = e => e ? over(behind(e.parentElement), getComputedStyle(e).backgroundColor) : [255, 255, 255];
const light = rgb => rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
const pale = [];
for (const e of document.querySelectorAll('body *')) {
  if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !e.checkVisibility()) continue;
  const below = behind(e);
  const [a, b] = [light(below), light(over(below, getComputedStyle(e).color))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) pale.push(`${ratio.toFixed(2)} ${e.tagName}.${e.className} ${e.innerText.slice(0, 30)}`);
}
return [...new Set(pale)];
"""


@dataclass(frozen=True)
class Seen:
    """What one page is like: on a phone, on a desk, by day, by night, and on the line."""

    overflow: int
    wrong: list[str]
    pale: list[str]
    grounds: list[str]
    foreign: list[str]
    complaints: list[str]


@pytest.fixture(scope="module")
def pages(window: Browser, shift: Shift) -> dict[str, Seen]:
    """Every page, looked at once."""
    window.driver.delete_all_cookies()
    window.sign_in(shift.token)
    window.complaints()
    window.requests()
    return {name: seen(window, page) for name, page in PAGES.items()}


def seen(window: Browser, page: str) -> Seen:
    go_to(window, page)
    window.resize(PHONE)
    overflow, wrong, pale, grounds = window.overflow, window.run(LOOK), [], []
    window.resize(DESKTOP)
    for scheme in ("dark", "light"):
        window.prefer(scheme)
        pale += window.run(CONTRAST)
        grounds.append(window.run("return getComputedStyle(document.body).backgroundColor"))
    foreign = [url for url in window.requests() if not url.startswith(window.home)]
    return Seen(overflow, wrong, pale, grounds, foreign, window.complaints())


def test_every_page_fits_a_phone(pages):
    assert {name: page.overflow for name, page in pages.items() if page.overflow} == {}


@pytest.mark.parametrize("path", ["/", "/parked", "/discard?task=bitrix.create_contact"])
def test_a_long_name_fits_where_all_is_four_times_as_large(browser, path):
    """1280 pixels, looked at four times as large, are 320."""
    browser.resize((320, 640))
    browser.open(path)

    assert browser.overflow == 0


def test_everything_has_a_name_for_those_who_do_not_see(pages):
    assert {name: page.wrong for name, page in pages.items() if page.wrong} == {}


def test_every_text_stands_out_by_day_and_by_night(pages):
    assert {name: page.pale for name, page in pages.items() if page.pale} == {}
    assert {tuple(page.grounds) for page in pages.values()} == {
        ("rgb(18, 22, 23)", "rgb(246, 246, 243)")
    }


def test_nothing_is_asked_of_anybody_else_and_nothing_goes_wrong(pages):
    assert {name: page.foreign for name, page in pages.items() if page.foreign} == {}
    assert {name: page.complaints for name, page in pages.items() if page.complaints} == {}


def test_a_page_loads_itself_again_only_where_asked(operator):
    assert 'http-equiv="refresh"' not in operator.get("/").text
    assert '<meta http-equiv="refresh" content="5">' in operator.get("/?refresh=5").text
    assert 'http-equiv="refresh"' not in operator.get("/?refresh=0;url=https://evil").text


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/dead-letters/nobody", 404, "No dead letter has the id nobody."),
        ("/groups/cafe", 404, "No dead letter has the cause cafe."),
        ("/videos/none", 404, "No video of order none was asked for."),
        ("/crawls/none", 404, "No crawl has the id none."),
        ("/parked/none", 404, "It does not wait any more"),
        ("/nowhere", 404, "There is no such page."),
        ("/parked?cursor=x", 422, "makes no sense"),
        ("/dead-letters?cursor=1_0:x", 200, "letters"),
    ],
)
def test_what_is_not_there_is_told_in_words(operator, path, status, sentence):
    answer = operator.get(path)

    assert answer.status_code == status
    assert sentence in answer.text


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("job-to-mend", "Dead letter"),
        (night.DOUBTFUL, "Video of this order"),
        (night.USER, "Credits of this user"),
        (night.CRAWLER, "Crawls of this user"),
        ("crawl-of-the-night", "Crawl"),
    ],
)
def test_one_field_finds_whatever_has_an_id(operator, name, what):
    assert f"<b>{what}</b>" in operator.get("/find", params={"q": name}).text


# -- what is done


def test_a_cause_is_sent_again_by_the_keyboard_alone(browser, redis):
    store = DeadLetters(redis)
    before = store.count(Filter(error_type="ServiceUnavailable"))
    waiting = redis.llen("bitrix")
    browser.open("/groups")
    browser.keys(Keys.TAB)
    first = browser.focused
    browser.tab_to("bitrix.create_contact ServiceUnavailable")
    browser.enter()
    browser.tab_to(f"Dry run of {before}")
    browser.enter()
    asked = browser.text
    browser.tab_to("how")
    browser.keys(Keys.ARROW_DOWN)  # from the ramp to all at once
    browser.tab_to(f"Send {before} again")
    browser.enter()

    assert first == "Skip to the content"
    assert f"Send {before} letters again?" in asked
    assert f"{before} will run" in asked
    assert f"Sent {before} of {before} again." in browser.one(".said").text
    assert store.count(Filter(error_type="ServiceUnavailable")) == 0
    assert redis.llen("bitrix") == waiting + before


def test_a_letter_is_mended_looked_at_and_sent(browser, redis):
    browser.open("/dead-letters/job-to-mend")
    browser.press("Edit and send again")
    spoilt = browser.one("textarea").get_attribute("value")
    browser.fill("textarea", "{ this is no JSON")
    browser.press("Look at the change")
    refused = browser.one("#against").text
    browser.fill("textarea", spoilt.replace("abc", "1990.00"))
    browser.press("Look at the change")
    shown = [line.text for line in browser.all(".difference .minus, .difference .plus")]
    untouched = DeadLetters(redis).get("job-to-mend")
    browser.press("Save and send again")
    sent = DeadLetters(redis).get("job-to-mend")

    assert "This is no JSON" in refused
    assert shown == ['-  "amount": "abc",', '+  "amount": "1990.00",']
    assert (untouched.state, untouched.edits) == ("open", ())
    assert "Changed, and sent again" in browser.one(".said").text
    assert sent.state == "replayed"
    assert sent.message_body.kwargs["amount"] == "1990.00"
    assert (sent.edits[0].by, sent.settled_by) == ("dana", "dana")


def test_arguments_that_no_computer_reads_are_refused_in_words(operator):
    answer = operator.post("/edit", id="job-to-mend", arguments="[" * 100_000)

    assert answer.status_code == 422
    assert "This is no JSON" in answer.text


def test_a_gate_is_paused_with_a_word_and_resumed(browser, redis):
    browser.open("/gates")
    browser.one("#x details summary").click()
    browser.fill("#note-x", "their status page says so")
    browser.press("Pause x")
    paused = redis.hmget("perennial:gate:x", "paused_by", "paused_note")
    said = browser.one(".said").text
    browser.press("Resume x")

    assert paused == ["dana", "their status page says so"]
    assert "x is paused. Its jobs are parked from now on" in said
    assert re.search(r"x is resumed\. \d+ jobs come back", browser.one(".said").text)
    assert redis.hget("perennial:gate:x", "paused_since") is None


def test_a_ramp_is_begun_followed_and_stopped(operator, redis):
    which = {"task": "bitrix.update_deal", "error_type": "BusinessRule"}
    asked = operator.get("/replay", params=which).text
    form = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', asked))
    waiting = redis.llen("upkeep")
    begun = operator.post("/replay", on=f"/replay?task={which['task']}", **form, how="ramp")
    run = next(Replays(redis).each())
    ended = operator.post(f"/replays/{run.id}", action="cancel")

    assert "Send 4 letters again?" in asked
    assert "The replay is under way" in told(begun)
    assert (run.which.error_type, run.by) == ("BusinessRule", "dana")
    assert redis.llen("upkeep") == waiting + 1
    assert "No more jobs are sent" in told(ended)
    assert Replays(redis).get(run.id).state == "cancelled"


def test_letters_are_discarded_after_a_look_and_not_those_that_came_since(operator, redis):
    store = DeadLetters(redis)
    path = "/discard?error_type=NotFound"
    asked = operator.get(path).text
    form = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', asked))
    ids = [letter.message_id for letter in store.each(Filter(error_type="NotFound"))]
    late = store.get(ids[0])
    store.bury(type(late).from_json(late.to_json().replace(ids[0], "came-late")))
    redis.zadd("perennial:dead:open:type:NotFound", {"came-late": time.time()})
    answer = operator.post("/discard", on=path, **form, note="tests of the shop")

    assert f"Discard {len(ids)} letter" in asked
    assert f"Discarded {len(ids)} letters." in told(answer)
    assert {store.get(each).note for each in ids} == {"tests of the shop"}
    assert store.get("came-late").state == "open"


def test_a_cause_is_ignored_fixed_and_taken_back(operator, redis):
    store = DeadLetters(redis)
    group = next(g for g in store.groups() if g.error_type == "Unclassified")
    there = f"/groups/{group.fingerprint}"
    fixed = operator.post(f"{there}/fixed", version="1.4.2", note="a rule")
    noted = store.verdict(group.fingerprint)
    wrong = operator.post(f"{there}/fixed", version="soon")
    operator.post(f"{there}/unsay")
    unsaid = store.verdict(group.fingerprint)
    ignored = operator.post(f"{there}/ignore", note="known", until="1d")

    assert "Noted as fixed in 1.4.2" in told(fixed)
    assert (noted.version, noted.by) == ("1.4.2", "dana")
    assert "write a release like 1.4.2" in told(wrong)
    assert unsaid is None
    assert "1 letters are discarded" in told(ignored)
    assert store.get("job-hostile").state == "discarded"


def test_a_parked_job_is_released_pushed_back_and_cancelled(operator, redis):
    waiting = Parking(redis)
    jobs = [job for job in waiting.jobs() if job.reason == "ServiceUnavailable"]
    first, second, third = (job.message_id for job in jobs[-3:])
    operator.post("/parked", id=first, action="release")
    later = operator.post("/parked", id=second, action="postpone", until="1h")
    cancelled = operator.post("/parked", id=third, action="cancel")
    again = operator.post("/parked", id=third, action="cancel")

    assert waiting.get(first) is None or waiting.get(first).due <= time.time()
    assert "It comes back at" in told(later)
    assert waiting.get(second).due == pytest.approx(time.time() + 3600, abs=60)
    assert "cancelled for good" in told(cancelled)
    assert waiting.get(third) is None
    assert "nothing changed" in told(again)


def test_jobs_are_held_by_name_and_a_misspelt_one_is_refused(operator, redis):
    wrong = operator.post("/holds", task="", where="oder_id=7", note="a slip")
    held = operator.post(
        "/holds", task="bitrix.create_deal", where="order_id=7", note="the customer calls"
    )
    (hold,) = [each for each in Holds(redis).each() if each.where]
    lifted = operator.post(f"/holds/{hold.id}/lift")

    assert "no argument is called oder_id" in told(wrong)
    assert f"{hold.id} holds them" in told(held)
    assert (hold.task, hold.where, hold.by) == ("bitrix.create_deal", {"order_id": "7"}, "dana")
    assert f"{hold.id} is lifted" in told(lifted)
    assert hold.id not in {each.id for each in Holds(redis).standing()}


def test_a_video_in_doubt_is_settled_once(operator):
    path = f"/videos/{night.DOUBTFUL}"
    before = operator.get(path).text
    settled = operator.post("/videos", id=night.DOUBTFUL, action="refund")
    again = operator.post("/videos", id=night.DOUBTFUL, action="arrived")
    balance = operator.get("/credits", params={"user": night.USER}).text

    assert "Refund 2.00 credits" in before
    assert "The credits are back." in told(settled)
    assert "nothing changed" in told(again)
    assert "has 18.00 credits" in re.sub(r"</?code>", "", balance)


@pytest.mark.parametrize(
    ("path", "form"),
    [
        pytest.param("/videos", {"id": night.DOUBTFUL, "action": "look"}, id="an unknown verdict"),
        pytest.param("/parked", {"id": "job-1", "action": "wait"}, id="an unknown move"),
        pytest.param(
            "/parked", {"id": "job-1", "action": "postpone", "until": "ever"}, id="no such time"
        ),
        pytest.param("/replay", {"task": "bitrix.create_deal"}, id="letters without an end"),
        pytest.param("/discard", {"until": "soon"}, id="an end that cannot be read"),
    ],
)
def test_a_form_that_is_not_whole_does_nothing(operator, redis, path, form):
    before = names(redis), redis.zcard("perennial:dead:open"), redis.llen("bitrix")
    answer = operator.post(path, **form)

    assert answer.status_code == 422
    assert (names(redis), redis.zcard("perennial:dead:open"), redis.llen("bitrix")) == before


@pytest.mark.parametrize("asked", ["1" * 5_000, "٣", "-5", "1e3", "100"])
def test_a_senseless_refresh_is_none(stranger, asked):
    answer = stranger.get("/login", params={"refresh": asked})

    assert answer.status_code == 200
    assert 'http-equiv="refresh"' not in answer.text


def test_a_crawl_is_ended_by_the_job_that_does_so(operator, redis):
    waiting = redis.llen("x")
    ended = operator.post("/crawls", id="crawl-of-the-night")

    assert "ends at its next checkpoint" in told(ended)
    assert redis.llen("x") == waiting + 1


def test_what_an_action_did_is_told_once(operator):
    first = operator.post("/gates/x", action="reset")

    assert "x is reset" in told(first)
    assert 'class="said' not in operator.get("/gates").text


@pytest.mark.parametrize("odd", ["a/b", "ü?x=1", "a b&c", "%2e%2e", "x#y"])
def test_an_id_may_be_any_text(operator, redis, odd):
    store = DeadLetters(redis)
    some = next(store.each(Filter("all")))
    store.bury(type(some).from_json(some.to_json().replace(some.message_id, odd)))
    listed = operator.get("/dead-letters", params={"state": "all", "q": odd}).text
    link = next(each for each in LINK.findall(listed) if quote(odd, safe="/") in each)

    assert link.startswith("/console/dead-letters/")
    assert operator.get(link.removeprefix("/console")).status_code == 200


def test_half_a_character_in_a_payload_does_not_take_the_page_away(operator, redis):
    job = next(job for job in Parking(redis).jobs() if job.reason == "ServiceUnavailable")
    *place, raw = redis.hget("perennial:parked", job.message_id).split("\n", 3)
    message = json.loads(raw)
    spoilt = base64.b64decode(message["body"]).replace(b"WON", rb"half \ud83d")
    message["body"] = base64.b64encode(spoilt).decode()
    redis.hset("perennial:parked", job.message_id, "\n".join([*place, json.dumps(message)]))
    answer = operator.get(f"/parked/{job.message_id}")

    assert answer.status_code == 200
    assert "half \\ud83d" in answer.text


def test_without_redis_the_page_says_so(operator, shift):
    shift.stack.redis.stop()
    answer = operator.get("/")
    shift.stack.start_redis()

    assert answer.status_code == 503
    assert "Redis does not answer" in answer.text
    assert "Nothing is lost" in answer.text


def test_without_a_token_of_ours_nobody_is_let_in(routes, monkeypatch):
    from admin.console import mount

    monkeypatch.setenv("ADMIN_TOKEN", "")
    settings.cache_clear()
    app = FastAPI()
    mount(app)

    async def ask() -> list[httpx.Response]:
        line = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=line, base_url="http://api/console") as visitor:
            return [await visitor.request(method, path) for method, path in routes]

    answers = asyncio.run(ask())

    assert len(answers) > 25
    assert {answer.status_code for answer in answers} == {503}
    assert all("Set ADMIN_TOKEN" in answer.text for answer in answers)
