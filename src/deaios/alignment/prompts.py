"""Questions that auditors ask: ordinary ones, drawn from a space too large to list.

Pure. Some 10^10 texts, each under one of some thousand sets of parameters, are the product of openings, subjects,
clauses and their details; which was drawn is known only to the auditor. What this does not do: the sentences share a
grammar, and a provider that recognises it can serve it honestly and others not. An auditor with texts of its own is
harder to tell from a user.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from deaios.primitives.encoding import Json, encode_canonical_json
from deaios.primitives.hashing import tagged_sha256
from deaios.primitives.units import MILLI

T = TypeVar("T")

_OPENINGS = (
    "Explain {} to a ten year old.",
    "What should I know about {}?",
    "Write a short story about {}.",
    "Give me five tips about {}.",
    "Summarize the history of {}.",
    "What are common mistakes people make with {}?",
    "Compare two different approaches to {}.",
    "Write a friendly email to a colleague about {}.",
    "How does {} work, step by step?",
    "Why does {} matter today?",
    "Write a short poem about {}.",
    "List pros and cons of {}.",
    "Describe a typical day of somebody who works with {}.",
    "What would change if {} disappeared tomorrow?",
    "Suggest a weekend project about {}.",
    "Invent a fable about {}.",
)
_SUBJECTS = (
    "rainbows", "heat pumps", "inflation", "vaccines", "the bicycle", "sourdough bread", "chess openings",
    "coral reefs", "train timetables", "beekeeping", "volcanoes", "public libraries", "the violin", "solar panels",
    "glaciers", "street markets", "handwriting", "lighthouses", "composting", "the printing press", "tides", "jazz",
    "bridges", "meteor showers", "paper maps", "urban foxes", "coffee roasting", "prime numbers", "the compass",
    "wind turbines", "learning a language", "rock climbing", "garden ponds", "the moon", "soap making",
    "migrating birds", "recursion", "remote work", "old photographs", "night trains", "earthquakes", "cheese",
    "knitting", "the postal service", "sleep", "stage fright", "mushroom picking", "kites", "desert plants",
    "the telephone", "swimming", "map projections", "time zones", "water towers", "spices", "the alphabet",
    "houseplants", "ferries", "snow", "cats and dogs",
)  # fmt: skip
_CLAUSES = (
    "",
    "",
    " Keep it short.",
    " Use simple words.",
    " Give an example from {year}.",
    " Assume I live in {place}.",
    " I already know a bit about {other}.",
    " Mention {other} as well.",
    " End with a question for me.",
    " My friend in {place} says it is like {other}. Is that so?",
    " Answer as they would have in {year}.",
    " Use exactly {number} sentences.",
    " I have about {number} minutes.",
    " It is for a class of {number} pupils.",
)
_PLACES = (
    "Lisbon", "Nairobi", "Oslo", "Lima", "Kyoto", "Tunis", "Perth", "Quebec", "Tallinn", "Hanoi", "Cork", "Split",
    "Porto Alegre", "Tbilisi", "Accra", "Busan", "Leeds", "Graz", "Turin", "Izmir", "Pune", "Cebu", "Dakar", "Bergen",
)  # fmt: skip
_YEARS = range(1850, 2025)
_NUMBERS = range(3, 40)
_TEMPERATURES_MILLI = range(600, 1201, 50)
_TOP_P_MILLI = (None, None, 900, 950)
_MAX_TOKENS = range(56, 129)
_TAG = "deaios/audit-question/1"


@dataclass(frozen=True, slots=True)
class AuditQuestion:
    """One chat completion body, as a user's program would send it."""

    body: bytes
    text: str


def draw_question(model: str, dice: bytes) -> AuditQuestion:
    """A question from 32 random bytes.

    Args:
        model: the model's public name.
        dice: unpredictable to everybody else.
    """
    roll = _Roll(dice)
    text = _draw_text(roll)
    body: dict[str, Json] = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": roll.pick(_MAX_TOKENS),
    }
    data = encode_canonical_json(body)[:-1] + f',"temperature":{roll.pick(_TEMPERATURES_MILLI) / MILLI}'.encode()
    top_p = roll.pick(_TOP_P_MILLI)
    if top_p is not None:
        data += f',"top_p":{top_p / MILLI}'.encode()
    return AuditQuestion(data + b"}", text)


def draw_input(model: str, dice: bytes) -> bytes:
    """An embeddings body from 32 random bytes: one text of the same space.

    Args:
        model: the model's public name.
        dice: unpredictable to everybody else.
    """
    return encode_canonical_json({"model": model, "input": _draw_text(_Roll(dice))})


def _draw_text(roll: "_Roll") -> str:
    text = roll.pick(_OPENINGS).format(roll.pick(_SUBJECTS)) + "".join(_draw_clause(roll) for _ in range(2))
    return text[0].lower() + text[1:].rstrip(".?") if roll.pick((False, False, True)) else text


def _draw_clause(roll: "_Roll") -> str:
    return roll.pick(_CLAUSES).format(
        year=roll.pick(_YEARS), place=roll.pick(_PLACES), other=roll.pick(_SUBJECTS), number=roll.pick(_NUMBERS)
    )


class _Roll:
    """As many choices as are wanted from one secret."""

    def __init__(self, dice: bytes) -> None:
        self._dice = dice
        self._count = 0

    def pick(self, items: Sequence[T]) -> T:
        self._count += 1
        return items[int.from_bytes(tagged_sha256(_TAG, self._dice, self._count.to_bytes(4))[:8]) % len(items)]
