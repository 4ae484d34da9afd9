"""What end users read: complete in both languages, plain, short, and never without its facts."""

from __future__ import annotations

import re

import pytest

from config import messages
from config.messages import LOCALES, has, locale_of, text

FACTS = {
    "credits": "2.50",
    "needed": "3",
    "available": "0.75",
    "link": "https://media.example.com/" + "a" * 120 + ".mp4?expires=1764000000",
    "support": "@perennial_support",
}
REFUNDED = {"credits"}
ASKABLE = {"credits", "support"}
NOTHING: set[str] = set()

# Reasons of a UserError; `recipient_unreachable` has no text, as nobody could be told.
REASONS = {
    "photo_has_people": REFUNDED,
    "photo_too_dark": REFUNDED,
    "photo_no_product": REFUNDED,
    "photo_too_small": REFUNDED,
    "photo_wrong_format": REFUNDED,
    "photo_unreachable": REFUNDED,
    "content_not_allowed": REFUNDED,
    "photo_rejected": REFUNDED,
    "prompt_too_long": REFUNDED,
    "insufficient_credits": {"needed", "available"},
}
MESSAGES = REASONS | {
    "generation_overloaded": REFUNDED,
    "still_working": NOTHING,
    "system_error": ASKABLE,
    "cancelled": ASKABLE,
    "delivery_failed": REFUNDED,
    "delivery_unknown": NOTHING,
    "video_link": {"link"},
}
ANSWERS = {
    "press_started": NOTHING,
    "press_running": NOTHING,
    "press_sending": NOTHING,
    "press_done": NOTHING,
    "press_refused": NOTHING,
}
BUTTONS = {"button_try_again": NOTHING, "button_send_again": NOTHING}
NEEDS = MESSAGES | ANSWERS | BUTTONS

LONGEST = {
    **dict.fromkeys(MESSAGES, 500),  # characters: one screen of a phone
    **dict.fromkeys(ANSWERS, 200),  # answerCallbackQuery takes no more
    **dict.fromkeys(BUTTONS, 30),  # what a phone shows of a label
}
EMOJI = re.compile(r"[\u2600-\u27bf\U0001f000-\U0001faff]")
MARKUP = re.compile(r"[*_`~#|<>\[\]\\]|&\w+;")

every_text = pytest.mark.parametrize(
    ("code", "locale", "support"),
    [
        pytest.param(code, locale, support, id=f"{code}-{locale}" + ("" if support else "-alone"))
        for code, needs in NEEDS.items()
        for locale in LOCALES
        for support in ([FACTS["support"], ""] if "support" in needs else [FACTS["support"]])
    ],
)
every_locale = pytest.mark.parametrize("locale", LOCALES)


def told(code: str, locale: str, support: str) -> str:
    """What the user reads, when nothing is passed but what the code needs."""
    given = FACTS | {"support": support}
    return text(code, locale, **{name: given[name] for name in NEEDS[code]})


def bare(code: str, locale: str, support: str) -> str:
    """The same in our own words alone: each fact is a number."""
    given = dict.fromkeys(FACTS, "0") | {"support": support and "0"}
    return text(code, locale, **given)


# -- complete


@every_locale
def test_every_code_is_told_in_every_language_and_nothing_else_is(locale):
    assert set(messages._language(locale).texts) == set(NEEDS)
    assert all(map(has, NEEDS))


@every_locale
def test_who_may_be_sent_to_the_support_has_words_for_where_there_is_none(locale):
    askable = {code for code, needs in NEEDS.items() if "support" in needs}

    assert set(messages._language(locale).without_support) == askable


@pytest.mark.parametrize("code", ["recipient_unreachable", "without_support", "", "credits"])
def test_what_nobody_is_told_has_no_text(code):
    assert not has(code)


@every_text
def test_a_text_shows_each_of_its_facts_and_leaves_no_gap(code, locale, support):
    shown = told(code, locale, support)

    assert "{" not in shown
    assert "}" not in shown
    for name in NEEDS[code] - {"support"}:
        assert shown.count(FACTS[name]) == 1
    assert shown.count(FACTS["support"]) == ("support" in NEEDS[code] and support != "")


# -- what is missing


@every_locale
@pytest.mark.parametrize(
    ("code", "fact"), [(code, fact) for code, needs in NEEDS.items() for fact in sorted(needs)]
)
def test_a_missing_fact_is_an_error_that_names_text_and_fact(code, fact, locale):
    with pytest.raises(KeyError, match=rf"{code} \({locale}\) needs {fact}'"):
        text(code, locale, **{name: FACTS[name] for name in NEEDS[code] - {fact}})


@pytest.mark.parametrize("support", [FACTS["support"], ""], ids=["support", "no support"])
@pytest.mark.parametrize("code", ["photo_too_dark", "system_error"])
def test_an_empty_amount_is_a_missing_one(code, support):
    with pytest.raises(KeyError, match=f"{code} .* needs credits"):
        text(code, "en", credits="", support=support)


@pytest.mark.parametrize("support", [FACTS["support"], ""], ids=["support", "no support"])
@pytest.mark.parametrize("code", ["recipient_unreachable", "without_support"])
def test_an_unknown_code_is_an_error_that_names_it(code, support):
    with pytest.raises(KeyError, match=code):
        text(code, "ru", support=support)


@every_text
def test_a_fact_too_many_changes_nothing(code, locale, support):
    everything = FACTS | {"support": support, "minutes": "10"}

    assert text(code, locale, **everything) == told(code, locale, support)


def test_a_fact_is_shown_as_it_is():
    link = "https://media.example.com/{credits}/%7Bid%7D?a=1&b={0}"

    assert link in text("video_link", "en", link=link)


# -- which language


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("ru", "ru"),
        ("RU", "ru"),
        ("ru-RU", "ru"),
        ("ru_RU", "ru"),
        ("ru_RU.UTF-8", "ru"),
        ("ru-Latn-RU", "ru"),
        ("en", "en"),
        ("en-GB", "en"),
        ("de", "en"),
        ("uk", "en"),
        ("be-RU", "en"),
        ("run", "en"),
        ("", "en"),
        ("-ru", "en"),
    ],
)
def test_a_tag_picks_a_language_that_we_speak(tag, expected):
    assert locale_of(tag) == expected
    assert text("press_done", tag) == text("press_done", expected)


@every_text
def test_a_text_is_in_its_own_language(code, locale, support):
    words = re.findall(r"[^\W\d]+", bare(code, locale, support))
    foreign = {
        word for word in words if bool(re.search("[а-яё]", word.lower())) != (locale == "ru")
    }

    assert foreign <= {"Telegram", "JPEG", "PNG", "WebP"}


def test_no_word_mixes_two_alphabets():
    for words in messages._language("ru").texts.values():
        assert not re.search(r"[а-яёА-ЯЁ][a-zA-Z]|[a-zA-Z][а-яёА-ЯЁ]", words)


# -- how it reads


@every_text
def test_a_text_is_short(code, locale, support):
    assert 0 < len(told(code, locale, support)) <= LONGEST[code]


@every_text
def test_a_text_is_plain(code, locale, support):
    shown = bare(code, locale, support)

    assert MARKUP.findall(shown) == []
    assert len(EMOJI.findall(shown)) <= 1


@every_text
def test_a_text_has_no_space_to_spare(code, locale, support):
    shown = bare(code, locale, support)

    assert all(line == line.strip() for line in shown.split("\n"))
    assert not re.search(r"\n{3}| {2}|\t|\r", shown)


@every_text
def test_a_link_and_a_contact_end_their_line(code, locale, support):
    for line in told(code, locale, support).split("\n"):
        for fact in ("link", "support"):
            assert FACTS[fact] not in line or line.endswith(FACTS[fact])


@every_locale
@pytest.mark.parametrize("code", MESSAGES)
def test_a_message_says_what_becomes_of_the_credits(code, locale):
    word = {"ru": "кредит", "en": "credit"}[locale]

    assert word in bare(code, locale, "").lower()


@every_locale
def test_no_two_messages_open_alike(locale):
    openings = [bare(code, locale, "").split("\n")[0] for code in MESSAGES]

    assert len(set(openings)) == len(openings)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("photo_too_dark", "Возвращено кредитов: 2.50. Пришлите другое фото"),
        ("insufficient_credits", "Нужно: 3, у вас сейчас: 0.75.\n\nНичего не списано."),
        ("system_error", "напишите нам: @perennial_support"),
        ("delivery_unknown", "отправим его ещё раз бесплатно"),
    ],
)
def test_amounts_and_promises_stand_where_they_belong(code, expected):
    assert expected in told(code, "ru", FACTS["support"])


@every_locale
@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("photo_too_small", ["1000"]),
        ("photo_wrong_format", ["JPEG", "PNG", "WebP", "10"]),
        ("video_link", ["24"]),
    ],
)
def test_advice_names_the_limits(code, advice, locale):
    shown = told(code, locale, FACTS["support"])

    assert [limit for limit in advice if limit not in shown] == []
