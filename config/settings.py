"""Every environment variable, in one place. Nothing reads the environment elsewhere."""

from __future__ import annotations

import base64
import re
from functools import lru_cache
from typing import Annotated
from urllib.parse import quote, unquote, urlsplit

from click import ClickException
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError


class ConfigurationError(ClickException):
    """A setting is missing or wrong. On a command line it prints as one sentence, no traceback."""

    exit_code = 2


REDIS_SCHEMES = ("redis://", "rediss://", "sentinel://")
DSN = r"https?://[^/?#\s@:]+(:[^/?#\s@]*)?@[^/?#\s@]+(/[^?#\s]*)?/\d+"
URL_SAFE = str.maketrans("+/", "-_")  # the two alphabets of base64
KEY_BYTES = 32  # of a Fernet key


class Destination(BaseModel):
    """Where messages are delivered: a FHIR server; *rate* is in requests per second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[str, StringConstraints(pattern=r"^https?://[^/?#\s@]+(/[^?#\s]*)?$")]
    token: SecretStr | None = None
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0

    # A client that cannot be built would keep every destination from its messages.
    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if not _readable(value):
            raise ValueError("must have a number as its port")
        return value

    @field_validator("token")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[\x21-\x7e]*", value.get_secret_value()):
            raise ValueError("must be letters, digits and signs of ASCII")
        return value


# The name becomes a part of the gate's: `integration-lab`.
DestinationName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
DESTINATIONS = TypeAdapter(dict[DestinationName, Destination])


class Settings(BaseSettings):
    """The configuration of one process, read from the environment once."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, allow_inf_nan=False
    )

    redis_url_: Annotated[
        SecretStr | None,
        Field(
            validation_alias="REDIS_URL",
            description="Redis or Valkey: redis://[:password@]host:port/db, rediss://…, or "
            "sentinel://host:26379;sentinel://host2:26379/db (needs REDIS_SENTINEL_MASTER).",
        ),
    ] = None
    valkey_url_: Annotated[
        SecretStr | None, Field(validation_alias="VALKEY_URL", description="Same as REDIS_URL.")
    ] = None
    redis_host: Annotated[str | None, Field(description="Instead of REDIS_URL: the host.")] = None
    redis_port: Annotated[int, Field(ge=1, le=65535, description="With REDIS_HOST.")] = 6379
    redis_password: Annotated[SecretStr | None, Field(description="With REDIS_HOST.")] = None
    redis_sentinel_master: Annotated[
        str, Field(description="Name of the master that the Sentinels watch.")
    ] = "mymaster"
    valkey_max_connections: Annotated[
        int, Field(ge=4, description="Most connections one process opens to Redis.")
    ] = 200
    redis_stream_prefix: Annotated[
        str, Field(description="Put before every key, queues included; for a shared Redis.")
    ] = ""
    celery_broker_url_: Annotated[
        SecretStr | None,
        Field(
            validation_alias="CELERY_BROKER_URL",
            description="RabbitMQ for the queues: `amqp://…`. A Redis here takes the place of "
            "REDIS_URL: what is queued and what is parked belong together.",
        ),
    ] = None
    visibility_timeout: Annotated[
        float,
        Field(
            gt=0,
            description="Seconds after which the jobs of a worker that stopped beating come back. "
            "Running workers vouch for theirs five times in that span.",
        ),
    ] = 30.0

    database_url: Annotated[
        str,
        Field(
            repr=False,  # it may hold a password
            description="SQLAlchemy URL: sqlite:///file or postgresql+psycopg://…",
        ),
    ] = "sqlite:///perennial.db"
    spool_dir: Annotated[
        str, Field(description="Folder for dead letters that Redis would not take.")
    ] = "spool"

    dead_letter_days: Annotated[
        float,
        Field(gt=0, description="Days that a dead letter stays in Redis; then it is archived."),
    ] = 30.0
    dead_letters_kept: Annotated[
        int, Field(ge=1, description="Most dead letters in Redis; the oldest are archived first.")
    ] = 10_000
    release: Annotated[
        str,
        Field(
            description="Version of what runs here, like 1.4.2; it tells a death in code that is "
            "older than a fix from a regression."
        ),
    ] = ""

    bitrix_enabled: Annotated[bool, Field(description="Whether Bitrix24 is in use at all.")] = True
    bitrix_worker_enabled: Annotated[
        bool, Field(description="Whether workers here take jobs of the queue `bitrix`.")
    ] = True
    bitrix_webhook_url: Annotated[
        SecretStr | None,
        Field(description="Inbound webhook, https://portal/rest/1/code/ (a secret)."),
    ] = None
    bitrix_application_token: Annotated[
        SecretStr | None,
        Field(description="Token that the portal sends with its own webhooks (a secret)."),
    ] = None
    bitrix_originator_id: Annotated[
        str, Field(min_length=1, description="ORIGINATOR_ID of what we create in the portal.")
    ] = "perennial"
    bitrix_rate: Annotated[
        float, Field(gt=0, description="Requests per second that the portal's bucket leaks.")
    ] = 2.0
    bitrix_burst: Annotated[
        int, Field(ge=1, description="Requests that the portal's bucket holds.")
    ] = 50
    bitrix_coalesce: Annotated[
        bool, Field(description="Send waiting calls together as one `batch` request.")
    ] = True
    bitrix_lookup_before_create: Annotated[
        bool,
        Field(description="Look in the portal before every first create; for a migration."),
    ] = False

    public_url: Annotated[
        str,
        Field(
            description="Where the outside reaches our API, https://jobs.example.com; with it KIE "
            "calls back when a video is ready, and is asked far less often."
        ),
    ] = ""

    kie_api_key: Annotated[SecretStr | None, Field(description="Key of KIE.AI (a secret).")] = None
    kie_base_url: Annotated[str, Field(description="Where KIE.AI is.")] = "https://api.kie.ai"
    kie_model: Annotated[
        str, Field(min_length=1, description="Model that makes the videos; see `clients/kie.py`.")
    ] = "sora-2-image-to-video"
    kie_webhook_hmac_key: Annotated[
        SecretStr | None,
        Field(description="Key that KIE.AI signs its callbacks with, where enabled (a secret)."),
    ] = None
    kie_rate: Annotated[
        float, Field(gt=0, description="Videos per second that KIE.AI is asked to begin.")
    ] = 1.8
    kie_query_rate: Annotated[
        float, Field(gt=0, description="Questions per second about videos that are being made.")
    ] = 9.0

    telegram_bot_token: Annotated[
        SecretStr | None, Field(description="Token of the bot (a secret).")
    ] = None
    telegram_base_url: Annotated[
        str, Field(description="Where the Bot API is; a local server takes files of 2000 MB.")
    ] = "https://api.telegram.org"
    telegram_webhook_secret: Annotated[
        SecretStr | None,
        Field(description="`secret_token` given to setWebhook, sent with each update (a secret)."),
    ] = None
    telegram_rate: Annotated[
        float, Field(gt=0, description="Messages per second to all chats together.")
    ] = 28.0
    support_contact: Annotated[
        str, Field(description="Whom users are sent to: @name, an address or a link.")
    ] = ""
    media_dir: Annotated[
        str, Field(description="Folder for videos between KIE.AI and Telegram.")
    ] = "media"

    x_client_id: Annotated[
        str | None, Field(description="Client id of our app at X; renews the tokens of users.")
    ] = None
    x_client_secret: Annotated[
        SecretStr | None,
        Field(description="Its client secret, where it is a confidential client (a secret)."),
    ] = None
    x_base_url: Annotated[str, Field(description="Where the API of X is.")] = "https://api.x.com"
    x_rate: Annotated[
        float, Field(gt=0, description="Requests per second to X for all users together.")
    ] = 20.0
    credentials_key: Annotated[
        SecretStr | None,
        Field(
            description="Encrypts the tokens of users in the database: base64 of 32 bytes (openssl "
            "rand -base64 32). Several with commas between them: the first encrypts, all decrypt. "
            "Without it a file beside an SQLite database holds one; PostgreSQL needs it (a secret)."
        ),
    ] = None

    integration_destinations: Annotated[
        SecretStr | None,
        Field(
            description="Where messages may be delivered, by name: JSON such as "
            '`{"lab": {"url": "https://fhir.example.com/r4", "token": "…", "rate": 10}}`; the rate '
            "is in requests per second (a secret)."
        ),
    ] = None

    admin_token: Annotated[
        SecretStr | None,
        Field(description="Bearer token of the admin API; without it the API stays closed."),
    ] = None
    metrics_public: Annotated[
        bool, Field(description="Whether `/metrics` of the API needs no bearer token.")
    ] = False
    flower_basic_auth: Annotated[
        SecretStr | None,
        Field(description="user:password of Flower; without it Flower makes one up and says so."),
    ] = None
    flower_url: Annotated[
        str, Field(description="Where people reach Flower, for links from our own pages.")
    ] = ""
    log_format: Annotated[
        str,
        Field(
            description="`json` or `console`; without it JSON, and console where a log goes to a "
            "terminal."
        ),
    ] = ""
    sentry_dsn: Annotated[
        SecretStr | None,
        Field(
            description="Where Sentry takes events, https://key@host/project; without it nothing "
            "is sent (a secret)."
        ),
    ] = None
    otel_exporter_otlp_endpoint: Annotated[
        str,
        Field(
            description="Where an OpenTelemetry collector takes spans by HTTP, http://host:4318; "
            "needs the extra `opentelemetry`. The other variables of that standard count, too."
        ),
    ] = ""
    otel_exporter_otlp_headers: Annotated[
        SecretStr | None,
        Field(description="What goes with them, name=value,… (a secret)."),
    ] = None
    max_retries: Annotated[
        int, Field(ge=0, description="Retries of a failure that may pass by itself.")
    ] = 5
    initial_backoff: Annotated[
        float, Field(gt=0, description="Seconds before the first retry; doubled each time.")
    ] = 1.0
    retry_time_scale: Annotated[
        float, Field(gt=0, description="Multiplies every wait that is ours; for tests and drills.")
    ] = 1.0
    keep_results: Annotated[
        bool, Field(description="Keep results for a day, readable by AsyncResult(id).get().")
    ] = True
    worker_threads: Annotated[
        int, Field(ge=1, description="Jobs one worker process runs at a time.")
    ] = 128
    heartbeat_file: Annotated[
        str,
        Field(
            description="File that a worker touches every two seconds and beat at least every "
            "thirty, for health checks; the image has one. Without it none."
        ),
    ] = ""

    @field_validator("redis_url_", "valkey_url_", "celery_broker_url_")
    @classmethod
    def _is_an_address(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is None:
            return None
        # Valkey's own spelling; the clients know the older one only.
        url = re.sub(r"^valkey(s?)://", r"redi\1s://", value.get_secret_value().strip())
        ours = info.field_name != "celery_broker_url_"
        if not _readable(url) or (ours and not url.startswith(REDIS_SCHEMES)):
            raise ValueError(
                f"must start with {', '.join(REDIS_SCHEMES) if ours else 'a scheme and ://'} and "
                "have special characters of a password percent-encoded"
            )
        return SecretStr(url)

    @field_validator(
        "admin_token",
        "bitrix_application_token",
        "flower_basic_auth",
        "kie_api_key",
        "kie_webhook_hmac_key",
        "telegram_webhook_secret",
        "x_client_secret",
    )
    @classmethod
    def _is_a_word(cls, value: SecretStr | None) -> SecretStr | None:
        # Files and secrets of Kubernetes like to end in a newline, which no header can carry.
        word = value.get_secret_value().strip() if value else ""
        return SecretStr(word) if word else None

    @field_validator("flower_basic_auth")
    @classmethod
    def _is_a_login(cls, value: SecretStr | None) -> SecretStr | None:
        # Flower takes anything, and lets nobody in.
        if value and not re.fullmatch(r"[^:]+:.+", value.get_secret_value()):
            raise ValueError("must look like user:password")
        return value

    @field_validator("redis_host")
    @classmethod
    def _is_a_host(cls, value: str | None) -> str | None:
        if value is not None and re.search(r"[\s/@]", value):
            raise ValueError("must be a host alone; an address belongs into REDIS_URL")
        return value

    @field_validator("bitrix_webhook_url")
    @classmethod
    def _is_a_webhook(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        url = value.get_secret_value().strip()
        if not re.fullmatch(r"https?://[^/?#\s]+(/[^?#\s]*)?/rest/[^/?#\s]+/[^/?#\s]+/?", url):
            raise ValueError("must look like https://portal.bitrix24.com/rest/1/code/")
        return SecretStr(url.rstrip("/") + "/")

    @field_validator(
        "kie_base_url",
        "telegram_base_url",
        "x_base_url",
        "public_url",
        "otel_exporter_otlp_endpoint",
    )
    @classmethod
    def _is_a_base_url(cls, value: str) -> str:
        url = value.strip()
        shape = r"https?://[^/?#\s@]+(/[^?#\s]*)?"
        if url and not (re.fullmatch(shape, url) and _readable(url)):
            raise ValueError("must look like https://host, without a question mark or a login")
        return url.rstrip("/")

    @field_validator("log_format")
    @classmethod
    def _is_a_log_format(cls, value: str) -> str:
        if value not in {"", "json", "console"}:
            raise ValueError("must be json or console")
        return value

    @field_validator("sentry_dsn")
    @classmethod
    def _is_a_dsn(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not re.fullmatch(DSN, value.get_secret_value().strip()):
            raise ValueError("must look like https://key@host/project")
        return value and SecretStr(value.get_secret_value().strip())

    @field_validator("telegram_bot_token")
    @classmethod
    def _is_a_bot_token(cls, value: SecretStr | None) -> SecretStr | None:
        # It becomes a part of every address.
        if value and not re.fullmatch(r"[A-Za-z0-9:_-]+", value.get_secret_value().strip()):
            raise ValueError("must look like 123456:ABC-DEF…")
        return value and SecretStr(value.get_secret_value().strip())

    @field_validator("integration_destinations")
    @classmethod
    def _are_destinations(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        try:
            DESTINATIONS.validate_json(value.get_secret_value())
        except ValidationError as error:  # its own text would quote the tokens
            where = ", ".join(dict.fromkeys(str(e["loc"][0]) for e in error.errors() if e["loc"]))
            raise ValueError(
                'must be JSON such as {"lab": {"url": "https://host/r4", "token": "…"}}, with '
                f"names of small letters, digits and dashes{where and f' (look at {where})'}"
            ) from None
        return value

    @field_validator("credentials_key")
    @classmethod
    def _are_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        keys = [key.strip() for key in value.get_secret_value().split(",")]
        if not all(_is_a_key(key) for key in keys):
            raise ValueError("must be base64 of 32 bytes, or several such with commas between them")
        return SecretStr(",".join(key.translate(URL_SAFE) for key in keys))

    @field_validator("database_url")
    @classmethod
    def _database_is_a_url(cls, value: str) -> str:
        try:
            backend = make_url(value).get_backend_name()
        except (ArgumentError, ValueError):  # the latter for a port that is none
            backend = ""
        if backend not in {"sqlite", "postgresql"}:
            raise ValueError("must look like sqlite:///file or postgresql+psycopg://…")
        return value

    @property
    def redis_url(self) -> str:
        """Where our Redis is: that of the queues, if they are in one.

        Jobs move between queues and parked ones in one step, so both have to be in the same.

        Raises:
            ConfigurationError: if neither REDIS_URL, VALKEY_URL nor REDIS_HOST is set.
        """
        for url in (self.celery_broker_url_, self.redis_url_, self.valkey_url_):
            if url is not None and url.get_secret_value().startswith(REDIS_SCHEMES):
                return url.get_secret_value()
        if self.redis_host is not None:
            password = self.redis_password.get_secret_value() if self.redis_password else ""
            login = f":{quote(password, safe='')}@" if password else ""
            host = f"[{self.redis_host}]" if ":" in self.redis_host else self.redis_host
            return f"redis://{login}{host}:{self.redis_port}/0"
        raise ConfigurationError(
            "Redis is not configured: set REDIS_URL (redis://host:6379/0), VALKEY_URL or "
            "REDIS_HOST. To try everything on this machine without one, run `make demo`."
        )

    @property
    def broker_url(self) -> str:
        """Where Celery's queues are: CELERY_BROKER_URL, else the same Redis."""
        if self.celery_broker_url_ is not None:
            return self.celery_broker_url_.get_secret_value()
        return self.redis_url

    @property
    def queues(self) -> dict[str, str]:
        """Queue → why workers here leave it alone (empty: they take its jobs)."""
        return {
            "bitrix": self._bitrix_obstacle(),
            "kie": "" if self.kie_api_key else "KIE_API_KEY is not set",
            "telegram": "" if self.telegram_bot_token else "TELEGRAM_BOT_TOKEN is not set",
            "x": self._x_obstacle(),
            "integration": "" if self.destinations else "INTEGRATION_DESTINATIONS is not set",
            "upkeep": "",  # what we do for ourselves; it calls no upstream
        }

    @property
    def destinations(self) -> dict[str, Destination]:
        """Where messages may be delivered, by name."""
        if self.integration_destinations is None:
            return {}
        return DESTINATIONS.validate_json(self.integration_destinations.get_secret_value())

    def _x_obstacle(self) -> str:
        # A stand-in may serve users whose tokens never end; of X itself there are none.
        real = self.x_base_url == type(self).model_fields["x_base_url"].default
        return "X_CLIENT_ID is not set" if real and not self.x_client_id else ""

    def _bitrix_obstacle(self) -> str:
        if not self.bitrix_enabled:
            return "BITRIX_ENABLED is false"
        if not self.bitrix_worker_enabled:
            return "BITRIX_WORKER_ENABLED is false"
        if self.bitrix_webhook_url is None:
            return "BITRIX_WEBHOOK_URL is not set (https://portal.bitrix24.com/rest/1/code/)"
        return ""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every configured secret, for redaction; what is secret within one also on its own."""
        values = [
            field.get_secret_value()
            for name in type(self).model_fields
            if isinstance(field := getattr(self, name), SecretStr)
        ]
        nodes = [node for url in values for node in url.split(";")]
        encoded = [urlsplit(node).password or "" for node in nodes if _readable(node)]
        values += [*encoded, *map(unquote, encoded), make_url(self.database_url).password or ""]
        if self.flower_basic_auth is not None:
            values.append(self.flower_basic_auth.get_secret_value().partition(":")[2])
        if self.bitrix_webhook_url is not None:
            path = urlsplit(self.bitrix_webhook_url.get_secret_value()).path
            values.append(path.rstrip("/").rsplit("/", 1)[-1])
        if self.sentry_dsn is not None:
            values.append(urlsplit(self.sentry_dsn.get_secret_value()).username or "")
        if self.otel_exporter_otlp_headers is not None:
            given = self.otel_exporter_otlp_headers.get_secret_value().split(",")
            encoded = [header.partition("=")[2].strip() for header in given]
            values += [*encoded, *map(unquote, encoded)]
        if self.credentials_key is not None:
            values += self.credentials_key.get_secret_value().split(",")
        values += [to.token.get_secret_value() for to in self.destinations.values() if to.token]
        if self.telegram_bot_token is not None:  # what comes first is the id of the bot
            values.append(self.telegram_bot_token.get_secret_value().partition(":")[2])
        return tuple(dict.fromkeys(value for value in values if value))


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process.

    Raises:
        ConfigurationError: if a variable has a value that cannot be used; it names each one.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigurationError(_in_words(error)) from None


def _in_words(error: ValidationError) -> str:
    """Name each wrong variable and what is wrong with it, never its value: it may be a secret."""
    lines = [
        f"{str(e['loc'][0]).upper()}: {e['msg'].removeprefix('Value error, ')}"
        for e in error.errors(include_input=False)
    ]
    return "the configuration cannot be used: " + "; ".join(lines)


def _is_a_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text.translate(URL_SAFE), b"-_", validate=True)) == KEY_BYTES
    except ValueError:
        return False


def _readable(url: str) -> bool:
    """Whether every address in *url* can be taken apart; Python's own complaint would quote it."""
    try:
        return all(urlsplit(node).port != 0 and "://" in node for node in url.split(";"))
    except ValueError:
        return False
