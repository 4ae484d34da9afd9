"""The environment: what is read from it, what is refused, and in which words."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from config.settings import ConfigurationError, Settings, settings

ROOT = Path(__file__).parents[2]
SECRET = "hunter2"
WEBHOOK = "https://portal.bitrix24.com/rest/1/s3cr3tc0de/"


def variables() -> list[str]:
    fields = Settings.model_fields.items()
    return [str(field.validation_alias or name).upper() for name, field in fields]


@pytest.fixture
def environment(monkeypatch):
    """Make these variables all there are, and return the settings they give."""
    for name in variables():
        monkeypatch.delenv(name, raising=False)

    def choose(**chosen: str) -> Settings:
        for name, value in chosen.items():
            monkeypatch.setenv(name, value)
        settings.cache_clear()
        return settings()

    yield choose
    settings.cache_clear()


def refusal(environment, **chosen: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        environment(**chosen)
    return caught.value.format_message()


# -- what is refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", f"localhost/{SECRET}"),
        ("REDIS_URL", f"http://:{SECRET}@host"),
        ("REDIS_URL", f"redis://:{SECRET}#@host:6379/0"),
        ("REDIS_URL", f"redis://[{SECRET}"),
        ("VALKEY_URL", f"redis://host:{SECRET}"),
        ("REDIS_HOST", f"redis://{SECRET}"),
        ("REDIS_PORT", SECRET),
        ("REDIS_PORT", "0"),
        ("REDIS_PORT", "65536"),
        ("VALKEY_MAX_CONNECTIONS", "3"),
        ("CELERY_BROKER_URL", SECRET),
        ("CELERY_BROKER_URL", f"amqp://user:{SECRET}#@host//"),
        ("VISIBILITY_TIMEOUT", "0"),
        ("DATABASE_URL", SECRET),
        ("DATABASE_URL", f"mysql://user:{SECRET}@host/db"),
        ("DATABASE_URL", f"postgresql://user:{SECRET}@host:port/db"),
        ("BITRIX_ENABLED", SECRET),
        ("BITRIX_WORKER_ENABLED", "perhaps"),
        ("BITRIX_RATE", "0"),
        ("BITRIX_RATE", "inf"),
        ("BITRIX_BURST", "0"),
        ("BITRIX_BURST", "2.5"),
        ("MAX_RETRIES", "-1"),
        ("INITIAL_BACKOFF", "0"),
        ("RETRY_TIME_SCALE", "nan"),
        ("RETRY_TIME_SCALE", "inf"),
        ("RETRY_TIME_SCALE", "-1"),
        ("KIE_BASE_URL", SECRET),
        ("KIE_RATE", "0"),
        ("KIE_RATE", "inf"),
        ("KIE_QUERY_RATE", "-1"),
        ("TELEGRAM_BOT_TOKEN", f"123456:{SECRET}/getMe"),
        ("TELEGRAM_BOT_TOKEN", f"123456:{SECRET} x"),
        ("TELEGRAM_BASE_URL", f"https://api.telegram.org/bot?{SECRET}"),
        ("TELEGRAM_RATE", "0"),
        ("PUBLIC_URL", f"jobs.example.com/{SECRET}"),
        ("FLOWER_BASIC_AUTH", SECRET),
        ("KEEP_RESULTS", SECRET),
        ("LOG_FORMAT", "xml"),
        ("SENTRY_DSN", f"https://sentry.example.com/{SECRET}"),
        ("SENTRY_DSN", f"https://{SECRET}@sentry.example.com"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", f"collector:4318/{SECRET}"),
        ("WORKER_THREADS", "0"),
    ],
)
def test_a_wrong_variable_is_named_without_its_value(environment, name, value):
    told = refusal(environment, **{name: value})

    assert told.startswith(f"the configuration cannot be used: {name}: ")
    assert SECRET not in told
    assert told.count("\n") == 0


def test_every_wrong_variable_is_named_at_once(environment):
    told = refusal(environment, MAX_RETRIES="many", BITRIX_RATE="fast", REDIS_PORT="none")

    assert all(name in told for name in ("MAX_RETRIES", "BITRIX_RATE", "REDIS_PORT"))


def test_a_refusal_drags_no_value_along(environment):
    with pytest.raises(ConfigurationError) as caught:
        environment(BITRIX_RATE=SECRET)

    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_variable_is_documented(field):
    assert Settings.model_fields[field].description


def test_an_empty_variable_counts_as_none(environment):
    chosen = environment(REDIS_URL="", VALKEY_URL="redis://valkey", MAX_RETRIES="")

    assert chosen.redis_url == "redis://valkey"
    assert chosen.max_retries == 5


@pytest.mark.parametrize(
    "name",
    [
        "ADMIN_TOKEN",
        "BITRIX_APPLICATION_TOKEN",
        "KIE_API_KEY",
        "KIE_WEBHOOK_HMAC_KEY",
        "TELEGRAM_WEBHOOK_SECRET",
        "X_CLIENT_SECRET",
    ],
)
def test_the_newline_behind_a_word_is_no_part_of_it(environment, name):
    kept = getattr(environment(**{name: f" {SECRET}\n"}), name.lower())

    assert kept.get_secret_value() == SECRET
    assert getattr(environment(**{name: " \n"}), name.lower()) is None


def test_the_newline_behind_the_login_of_flower_is_no_part_of_it(environment):
    login = environment(FLOWER_BASIC_AUTH=f"ann:{SECRET}\n").flower_basic_auth

    assert login.get_secret_value() == f"ann:{SECRET}"


def test_settings_do_not_change(environment):
    with pytest.raises(ValueError, match="frozen"):
        environment().max_retries = 9


# -- Redis


@pytest.mark.parametrize(
    ("chosen", "url"),
    [
        ({"REDIS_URL": "redis://h:1/2"}, "redis://h:1/2"),
        ({"REDIS_URL": " redis://h:1/2\n"}, "redis://h:1/2"),
        ({"REDIS_URL": "rediss://:p%40@h"}, "rediss://:p%40@h"),
        ({"REDIS_URL": "sentinel://a:1;sentinel://b:2/0"}, "sentinel://a:1;sentinel://b:2/0"),
        ({"VALKEY_URL": "redis://v"}, "redis://v"),
        ({"VALKEY_URL": "valkey://v:7/1"}, "redis://v:7/1"),
        ({"VALKEY_URL": "valkeys://v"}, "rediss://v"),
        ({"REDIS_URL": "redis://r", "VALKEY_URL": "redis://v"}, "redis://r"),
        ({"REDIS_URL": "redis://r", "REDIS_HOST": "h"}, "redis://r"),
        ({"REDIS_HOST": "h"}, "redis://h:6379/0"),
        ({"REDIS_HOST": "h", "REDIS_PORT": "7000"}, "redis://h:7000/0"),
        ({"REDIS_HOST": "::1"}, "redis://[::1]:6379/0"),
        ({"CELERY_BROKER_URL": "redis://b"}, "redis://b"),
        ({"CELERY_BROKER_URL": "amqp://b", "REDIS_HOST": "h"}, "redis://h:6379/0"),
    ],
)
def test_where_redis_is(environment, chosen, url):
    assert environment(**chosen).redis_url == url


@pytest.mark.parametrize("password", ["p@ss:w/o?r#d", "100%", "üñí", "a b", "+&="])
def test_a_password_may_hold_any_sign(environment, password):
    from redis import Redis

    url = environment(REDIS_HOST="h", REDIS_PORT="7", REDIS_PASSWORD=password).redis_url
    understood = Redis.from_url(url).connection_pool.connection_kwargs

    assert (understood["host"], understood["port"]) == ("h", 7)
    assert understood["password"] == password


@pytest.mark.parametrize("chosen", [{}, {"CELERY_BROKER_URL": "amqp://guest@rabbit//"}])
def test_without_redis_it_says_what_to_set(environment, chosen):
    configured = environment(**chosen)

    with pytest.raises(ConfigurationError) as caught:
        _ = configured.redis_url

    told = caught.value.format_message()
    assert all(name in told for name in ("REDIS_URL", "VALKEY_URL", "REDIS_HOST", "make demo"))


@pytest.mark.parametrize(
    ("chosen", "url"),
    [
        ({"REDIS_URL": "redis://r"}, "redis://r"),
        ({"REDIS_HOST": "h"}, "redis://h:6379/0"),
        ({"REDIS_URL": "redis://r", "CELERY_BROKER_URL": "amqp://b"}, "amqp://b"),
        ({"REDIS_URL": "redis://r", "CELERY_BROKER_URL": "redis://b"}, "redis://b"),
        ({"CELERY_BROKER_URL": "valkey://b"}, "redis://b"),
    ],
)
def test_where_the_queues_are(environment, chosen, url):
    assert environment(**chosen).broker_url == url


# -- Bitrix


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (WEBHOOK, WEBHOOK),
        (WEBHOOK.rstrip("/"), WEBHOOK),
        (f" {WEBHOOK}\n", WEBHOOK),
        ("http://127.0.0.1:8012/rest/1/code", "http://127.0.0.1:8012/rest/1/code/"),
        ("https://host/mounted/here/rest/12/code/", "https://host/mounted/here/rest/12/code/"),
    ],
)
def test_a_webhook_may_be_spelt_with_or_without_its_slash(environment, given, kept):
    assert environment(BITRIX_WEBHOOK_URL=given).bitrix_webhook_url.get_secret_value() == kept


@pytest.mark.parametrize(
    "value",
    [
        "portal.bitrix24.com",
        "portal.bitrix24.com/rest/1/hunter2/",
        "https://portal.bitrix24.com/",
        "https://portal.bitrix24.com/rest/",
        "https://portal.bitrix24.com/rest/1/",
        "https://portal.bitrix24.com/rest/1/hunter2/profile.json",
        "https://portal.bitrix24.com/rest/1/hunter2/?auth=1",
        "https:///rest/1/hunter2/",
        "ftp://portal.bitrix24.com/rest/1/hunter2/",
        "https://portal.bitrix24.com/rest/1/hunter 2/",
    ],
)
def test_what_is_no_webhook_is_refused_with_an_example(environment, value):
    told = refusal(environment, BITRIX_WEBHOOK_URL=value)

    assert "BITRIX_WEBHOOK_URL: must look like https://portal.bitrix24.com/rest/1/code/" in told
    assert SECRET not in told


# -- KIE.AI and Telegram

base_urls = pytest.mark.parametrize("name", ["KIE_BASE_URL", "TELEGRAM_BASE_URL", "PUBLIC_URL"])


@base_urls
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://api.kie.ai", "https://api.kie.ai"),
        ("https://api.kie.ai/", "https://api.kie.ai"),
        (" https://api.kie.ai/\n", "https://api.kie.ai"),
        ("http://127.0.0.1:8025", "http://127.0.0.1:8025"),
        ("http://[::1]:8025", "http://[::1]:8025"),
        ("https://host/mounted/here/", "https://host/mounted/here"),
    ],
)
def test_a_base_address_is_kept_without_its_slash(environment, name, given, kept):
    assert getattr(environment(**{name: given}), name.lower()) == kept


@base_urls
@pytest.mark.parametrize(
    "value",
    [
        *("api.kie.ai", "ftp://api.kie.ai", "https://", "https:///path", "https://a b/"),
        *("https://host/?q=1", "https://host/#part", f"https://user:{SECRET}@host/"),
        *(f"https://host:{SECRET}", "https://host:65536", "https://[host", "h"),
    ],
)
def test_what_is_no_base_address_is_refused_with_an_example(environment, name, value):
    told = refusal(environment, **{name: value})

    assert f"{name}: must look like https://host" in told
    assert SECRET not in told


def test_upstreams_are_the_real_ones_unless_others_are_named(environment):
    chosen = environment(KIE_BASE_URL="", TELEGRAM_BASE_URL="", PUBLIC_URL="")

    assert chosen.kie_base_url == "https://api.kie.ai"
    assert chosen.telegram_base_url == "https://api.telegram.org"
    assert chosen.x_base_url == "https://api.x.com"
    assert chosen.public_url == ""


def test_a_token_may_be_read_from_a_file_with_its_last_line_break(environment):
    token = environment(TELEGRAM_BOT_TOKEN=" 123456:AA-b_c\n").telegram_bot_token

    assert token.get_secret_value() == "123456:AA-b_c"


KEY, KEY_2 = "A" * 43 + "=", "+/" * 21 + "8="  # 32 bytes each; the second in the usual alphabet


def test_keys_may_be_written_in_either_alphabet(environment):
    keys = environment(CREDENTIALS_KEY=f"{KEY}, {KEY_2}").credentials_key

    assert keys.get_secret_value() == f"{KEY},{'-_' * 21}8="


@pytest.mark.parametrize("key", ["short", KEY + "A", f"{KEY},", f"{KEY};{KEY}"])
def test_what_is_no_key_is_refused_and_not_shown(environment, key):
    told = refusal(environment, CREDENTIALS_KEY=key)

    assert "CREDENTIALS_KEY: must be base64 of 32 bytes" in told
    assert key not in told


def test_each_of_several_keys_is_a_secret(environment):
    assert {KEY, KEY_2.translate({43: 45, 47: 95})} <= {
        *environment(CREDENTIALS_KEY=f"{KEY},{KEY_2}").secrets
    }


OPEN = {
    "BITRIX_WEBHOOK_URL": WEBHOOK,
    "KIE_API_KEY": "k",
    "TELEGRAM_BOT_TOKEN": "1:t",
    "X_CLIENT_ID": "c",
    "INTEGRATION_DESTINATIONS": '{"lab": {"url": "https://fhir.example.com"}}',
}


def test_every_upstream_that_is_set_up_has_a_queue_that_is_served(environment):
    queues = ("bitrix", "kie", "telegram", "x", "integration", "upkeep")

    assert environment(**OPEN).queues == dict.fromkeys(queues, "")


@pytest.mark.parametrize(
    ("queue", "name"),
    [
        ("kie", "KIE_API_KEY"),
        ("telegram", "TELEGRAM_BOT_TOKEN"),
        ("x", "X_CLIENT_ID"),
        ("integration", "INTEGRATION_DESTINATIONS"),
    ],
)
def test_an_upstream_that_is_not_set_up_closes_its_own_queue_alone(environment, queue, name):
    queues = environment(**OPEN | {name: ""}).queues

    assert {at: why for at, why in queues.items() if why} == {queue: f"{name} is not set"}


def test_a_stand_in_for_x_needs_no_client_id(environment):
    assert environment(X_BASE_URL="http://127.0.0.1:8027").queues["x"] == ""


@pytest.mark.parametrize(
    ("text", "where"),
    [
        pytest.param(f"lab={SECRET}", "", id="not JSON"),
        pytest.param(f'["{SECRET}"]', "", id="a list"),
        pytest.param(f'{{"lab": "https://{SECRET}"}}', "lab", id="an address alone"),
        pytest.param(f'{{"Lab!": {{"url": "https://{SECRET}"}}}}', "Lab!", id="a name in capitals"),
        pytest.param(f'{{"lab": {{"url": "ftp://{SECRET}"}}}}', "lab", id="no http"),
        pytest.param(f'{{"lab": {{"url": "https://a:{SECRET}@h"}}}}', "lab", id="a login in it"),
        pytest.param(f'{{"lab": {{"tokn": "{SECRET}"}}}}', "lab", id="misspelt"),
        pytest.param(f'{{"lab": {{"url": "https://h:{SECRET}"}}}}', "lab", id="a port in words"),
        pytest.param(
            f'{{"lab": {{"url": "https://h", "token": "{SECRET}\\n"}}}}', "lab", id="two lines"
        ),
        pytest.param(
            f'{{"lab": {{"url": "https://h", "token": "ключ{SECRET}"}}}}', "lab", id="no ASCII"
        ),
    ],
)
def test_wrong_destinations_are_named_without_what_is_secret_in_them(environment, text, where):
    said = refusal(environment, INTEGRATION_DESTINATIONS=text)

    assert "INTEGRATION_DESTINATIONS: must be JSON such as" in said
    assert f"(look at {where})" in said or not where
    assert SECRET not in said


def test_the_token_of_each_destination_is_a_secret(environment):
    text = f'{{"lab": {{"url": "https://h", "token": "{SECRET}"}}}}'

    assert SECRET in environment(INTEGRATION_DESTINATIONS=text).secrets


@pytest.mark.parametrize(
    ("chosen", "obstacle"),
    [
        ({"BITRIX_WEBHOOK_URL": WEBHOOK}, ""),
        ({}, "BITRIX_WEBHOOK_URL is not set (https://portal.bitrix24.com/rest/1/code/)"),
        ({"BITRIX_WEBHOOK_URL": WEBHOOK, "BITRIX_ENABLED": "false"}, "BITRIX_ENABLED is false"),
        (
            {"BITRIX_WEBHOOK_URL": WEBHOOK, "BITRIX_WORKER_ENABLED": "0"},
            "BITRIX_WORKER_ENABLED is false",
        ),
    ],
    ids=["open", "no webhook", "disabled", "no worker"],
)
def test_a_queue_says_why_nobody_takes_its_jobs(environment, chosen, obstacle):
    assert environment(**chosen).queues["bitrix"] == obstacle


# -- secrets

SECRETS = {
    "REDIS_URL": "redis://:r3dis%40pw@host:6379/0",
    "REDIS_PASSWORD": "h0stpw",
    "CELERY_BROKER_URL": "sentinel://:s3ntinel1@a:1;sentinel://:s3ntinel2@b:2/0",
    "DATABASE_URL": "postgresql+psycopg://user:p%2Fg@host/db",
    "BITRIX_WEBHOOK_URL": WEBHOOK,
    "BITRIX_APPLICATION_TOKEN": "appt0ken",
    "KIE_API_KEY": "k1ekey",
    "KIE_WEBHOOK_HMAC_KEY": "k1ehmac",
    "TELEGRAM_BOT_TOKEN": "123456:b0tt0ken",
    "TELEGRAM_WEBHOOK_SECRET": "h00ksecret",
    "ADMIN_TOKEN": "adm1n",
    "FLOWER_BASIC_AUTH": "ann:fl0wer",
    "SENTRY_DSN": "https://s3ntrykey@sentry.example.com/7",
    "OTEL_EXPORTER_OTLP_HEADERS": "x-team=otelt3am,authorization=Bearer%20otelk3y",
}


@pytest.mark.parametrize(
    "secret",
    [
        *("r3dis%40pw", "r3dis@pw", SECRETS["REDIS_URL"], "h0stpw", "s3ntinel1", "s3ntinel2"),
        *("p/g", "s3cr3tc0de", WEBHOOK, "appt0ken", "adm1n", "fl0wer"),
        *("s3ntrykey", "otelt3am", "Bearer otelk3y", "Bearer%20otelk3y"),
        *("k1ekey", "k1ehmac", "123456:b0tt0ken", "b0tt0ken", "h00ksecret"),
    ],
)
def test_every_secret_is_known_for_redaction(environment, secret):
    assert secret in environment(**SECRETS).secrets


def test_nothing_that_is_no_secret_would_be_redacted(environment):
    assert environment(REDIS_URL="redis://host:6379/0").secrets == ("redis://host:6379/0",)
    assert "" not in environment(**SECRETS).secrets


def test_settings_can_be_printed(environment):
    shown = repr(environment(**SECRETS))

    assert not [secret for secret in environment(**SECRETS).secrets if secret in shown]
    assert "p%2Fg" not in shown


# -- what Celery is told


def celery_settings(environment, **chosen: str) -> dict[str, object]:
    environment(**chosen)
    return runpy.run_path(str(ROOT / "celeryconfig.py"))


@pytest.mark.parametrize(
    ("url", "transport"),
    [
        ("redis://h:1/2", "reliability.transport:Transport"),
        ("rediss://h:1/2", "reliability.transport:Transport"),
        ("valkey://h:1/2", "reliability.transport:Transport"),
        ("sentinel://a:1;sentinel://b:2/0", "reliability.transport:SentinelTransport"),
        ("amqp://guest@rabbit//", "reliability.rabbitmq:Transport"),
    ],
)
def test_every_broker_gets_our_transport(environment, url, transport):
    told = celery_settings(environment, CELERY_BROKER_URL=url, REDIS_URL="redis://r")

    assert told.get("broker_transport") == transport
    assert ("broker_use_ssl" in told) == url.startswith("rediss")


def test_a_transport_that_is_named_exists(environment):
    from kombu.utils.imports import symbol_by_name

    for url in ("redis://h", "sentinel://h"):
        name = celery_settings(environment, REDIS_URL=url)["broker_transport"]

        assert symbol_by_name(name).driver_type == "redis"


def test_results_are_kept_on_redis_whatever_the_broker_is(environment):
    told = celery_settings(
        environment, CELERY_BROKER_URL="amqp://guest@rabbit//", REDIS_URL="redis://r"
    )

    assert told["result_backend"].endswith("+redis://r")
    assert told["task_ignore_result"] is False
    assert told["result_expires"] == 86_400


def test_results_can_be_turned_off(environment):
    told = celery_settings(environment, REDIS_URL="redis://r", KEEP_RESULTS="false")

    assert told["result_backend"] == "reliability.results:NoResults"
    assert told["task_ignore_result"] is True


def test_a_shared_redis_keeps_everything_under_our_prefix(environment):
    told = celery_settings(environment, REDIS_URL="redis://r", REDIS_STREAM_PREFIX="shop:")

    assert told["broker_transport_options"]["global_keyprefix"] == "shop:"
    assert told["result_backend_transport_options"]["global_keyprefix"].startswith("shop:")


def test_every_queue_is_declared_even_those_nobody_serves_here(environment):
    told = celery_settings(environment, REDIS_URL="redis://r", BITRIX_ENABLED="false")

    assert {queue.name for queue in told["task_queues"]} == set(environment().queues)
    assert told["task_create_missing_queues"] is False


def test_celery_cannot_be_set_up_without_redis(environment):
    environment()

    with pytest.raises(ConfigurationError, match="Redis is not configured"):
        celery_settings(environment)


def test_a_canary_goes_into_each_queue_that_is_not_left_alone(environment):
    told = celery_settings(environment, **OPEN | {"REDIS_URL": "redis://r", "KIE_API_KEY": ""})
    canaries = [each for each in told["beat_schedule"].values() if each["task"] == "upkeep.canary"]

    queues = {each["options"]["queue"] for each in canaries}
    assert queues == {"bitrix", "telegram", "x", "integration", "upkeep"}
    assert all(each["kwargs"]["queue"] == each["options"]["queue"] for each in canaries)


def test_a_drill_has_its_schedule_scaled(environment):
    told = celery_settings(environment, REDIS_URL="redis://r", RETRY_TIME_SCALE="0.1")

    assert told["beat_schedule"]["compensate"]["schedule"] == pytest.approx(6.0)
    assert told["beat_schedule"]["compensate"]["options"]["expires"] == pytest.approx(6.0)
