"""A request as the purchases that it makes: one way to read any body, for who buys and for who checks.

Pure. Invariant: `read_part` gives for each part of a request the question that the gateway bought.
"""

from collections.abc import Sequence
from typing import assert_never

from deaios.market.chat import read_chat_body
from deaios.market.completion import read_completion_body
from deaios.market.embedding import read_embedding_body
from deaios.market.fields import InvalidParameter
from deaios.market.messages import read_messages_body
from deaios.market.question import Api, Part, Question
from deaios.market.responses import read_response_body


def count_choices(questions: Sequence[Question]) -> int:
    """How many answers a request wants in all."""
    return len(questions) * questions[0].n


def read_part(part: Part, body: bytes) -> Question:
    """What one purchase was for.

    Raises:
        InvalidBody: not one JSON object in UTF-8.
        InvalidParameter: something in it is not understood and offered, or the request has no such part.
    """
    questions = _read_questions(part, body)
    if part.index >= count_choices(questions):
        raise InvalidParameter(
            "index", f"the body asks for {count_choices(questions)} answers, this would be number {part.index}"
        )
    return questions[part.index // questions[0].n]


def _read_questions(part: Part, body: bytes) -> tuple[Question, ...]:
    if part.history and part.api != Api.RESPONSES:
        raise InvalidParameter("history", f"a body of {part.api} says all turns itself")
    match part.api:
        case Api.CHAT:
            return (read_chat_body(body),)
        case Api.COMPLETIONS:
            return read_completion_body(body)
        case Api.RESPONSES:
            wanted = read_response_body(body)
            if part.history and wanted.previous is None:
                raise InvalidParameter("history", "the body continues no earlier response")
            return (wanted.continue_from(part.history),)
        case Api.MESSAGES:
            return (read_messages_body(body),)
        case Api.EMBEDDINGS:
            return read_embedding_body(body)
        case _:
            assert_never(part.api)
