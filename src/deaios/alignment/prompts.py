"""Questions that auditors ask: ordinary ones, drawn from a large space, so that none can be told from a user's.

Pure. The space is the product of openings, subjects and turns; what was drawn before an answer is known only to the
auditor. A provider that treats these differently must treat users differently.
"""

from dataclasses import dataclass
from typing import TypeVar

from deaios.primitives.encoding import Json, encode_canonical_json
from deaios.primitives.hashing import sha256

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
_TEMPERATURES = (0.7, 0.8, 0.9, 1.0)
_MAX_TOKENS = (64, 96, 128)


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
    roll = sha256(b"audit question" + dice)
    text = _pick(_OPENINGS, roll[0:4]).format(_pick(_SUBJECTS, roll[4:8]))
    body: dict[str, Json] = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": _pick(_MAX_TOKENS, roll[8:12]),
    }
    temperature = _pick(_TEMPERATURES, roll[12:16])
    data = encode_canonical_json(body)
    if temperature != 1.0:
        data = data[:-1] + f',"temperature":{temperature}}}'.encode()
    return AuditQuestion(data, text)


def _pick(items: tuple[T, ...], dice: bytes) -> T:
    return items[int.from_bytes(dice) % len(items)]
