"""One bookmark as the simulated X API shows it: its fields in both generations, and its flaws."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from zlib import crc32

Generation = Literal["tweet", "post", "both"]
# UPSTREAMS 0.6: the spec says "post" where prose and old clients say "tweet".
NOUNS: dict[Generation, tuple[str, ...]] = {
    "tweet": ("tweet",),
    "post": ("post",),
    "both": ("tweet", "post"),
}

Invalid = Literal["not_an_object", "no_id", "empty_id", "null_id", "non_digit_id", "no_text"]
Unavailable = Literal["gone", "protected"]
Odd = Literal["unhydrated", "nul_text", "lone_surrogate"]
Kind = Invalid | Unavailable | Odd

# Kinds that are not shown at all: a problem of this type tells of them.
UNAVAILABLE = {"gone": "resource-not-found", "protected": "not-authorized-for-resource"}
# Kinds that are as good as any, and difficult all the same.
ODD = ("unhydrated", "nul_text", "lone_surrogate")

# Fields that may be asked for; {0} is the noun. Those that a post does not have are left out.
_FIELDS = (
    "article attachments author_id card_uri community_id context_annotations conversation_id "
    "created_at display_text_range edit_controls edit_history_{0}_ids entities geo id "
    "in_reply_to_user_id lang media_metadata non_public_metrics note_{0} organic_metrics "
    "paid_partnership possibly_sensitive promoted_metrics public_metrics referenced_{0}s "
    "reply_settings scopes source suggested_source_links text withheld"
)
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
# What texts end with in turn: nothing, another script, characters beyond the first plane, an
# escaped sign and a link, more than the 280 characters of old.
_TAILS = ("", " — «Привет, мир»", " 🧵👇\nsecond line", " R&amp;D https://t.co/a1B2", " again" * 60)


@dataclass(frozen=True, slots=True)
class Item:
    """One bookmark of *user*: its *number* counts from the oldest, which is 1."""

    user: str
    number: int
    kind: Kind | None = None

    @property
    def id(self) -> str:
        """The post's id: 19 digits, of this user and this number alone."""
        return f"19{crc32(self.user.encode()):010d}{self.number:07d}"

    @property
    def valid(self) -> bool:
        """Whether it is to be stored by whoever reads it."""
        return self.kind is None or self.kind in ODD


def fields(generation: Generation) -> frozenset[str]:
    """Return the names that may be asked for."""
    return frozenset(name for noun in NOUNS[generation] for name in _FIELDS.format(noun).split())


def shown(item: Item, asked: Iterable[str], generation: Generation) -> Any:
    """Return the bookmark with the fields *asked* beside those that are always there."""
    if item.kind == "not_an_object":
        return "a post that is none"
    always = {"id", "text", *(f"edit_history_{noun}_ids" for noun in NOUNS[generation])}
    post = _whole(item, generation)
    return _flawed({name: post[name] for name in post if name in always | {*asked}}, item.kind)


def _whole(item: Item, generation: Generation) -> dict[str, Any]:
    created = _BEGIN + timedelta(minutes=item.number)
    return {
        "id": item.id,
        "text": f"Bookmark {item.number} of {item.user}{_TAILS[item.number % len(_TAILS)]}",
        **{f"edit_history_{noun}_ids": [item.id] for noun in NOUNS[generation]},
        "author_id": author(item),
        "conversation_id": item.id,
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "lang": "en",
        "possibly_sensitive": False,
        "public_metrics": {"like_count": item.number, "reply_count": 0},
        "reply_settings": "everyone",
    }


def author(item: Item) -> str:
    """Return the id of who wrote it, one of 50."""
    return str(2_000_000 + item.number % 50)


def _flawed(post: dict[str, Any], kind: Kind | None) -> dict[str, Any]:
    match kind:
        case "no_id":
            del post["id"]
        case "empty_id":
            post["id"] = ""
        case "null_id":
            post["id"] = None
        case "non_digit_id":
            post["id"] = f"post-{post['id']}"
        case "no_text":
            del post["text"]
        case "nul_text":
            post["text"] += "\x00 after it"
        case "lone_surrogate":
            post["text"] += " \ud83e"
    return post
