"""What a request may cost at most, told before anybody pays: read from the exact body, as its door will read it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from deaios.gateway.desk import off_loop
from deaios.gateway.errors import RefusedModel
from deaios.gateway.purchasing import ServedModel, ServedModels
from deaios.market.chat import read_chat_body
from deaios.market.completion import read_completion_body
from deaios.market.embedding import read_embedding_body
from deaios.market.messages import read_messages_body
from deaios.market.question import Question
from deaios.primitives.errors import Invalid
from deaios.primitives.units import compute_fee

READERS: Mapping[str, Callable[[bytes], Sequence[Question]]] = MappingProxyType(
    {
        "/v1/chat/completions": lambda body: (read_chat_body(body),),
        "/v1/completions": read_completion_body,
        "/v1/embeddings": read_embedding_body,
        "/v1/messages": lambda body: (read_messages_body(body),),
    }
)
"""By path, the questions of a body. Doors whose requests need what was kept for a key before are not among them."""


async def quote(path: str, body: bytes, models: ServedModels) -> int:
    """The most that all purchases of a request cost, in smallest units.

    Raises:
        RefusedModel: no such model.
        Invalid…: the body is not one of that door.
    """
    questions = await off_loop(body, partial(READERS[path], body))
    found = []
    for name in (questions[0].model, *questions[0].fallbacks):
        model = models.find(name)
        if model is None:
            raise RefusedModel(f"the model {name[:128]!r} does not exist")
        found.append(model)
    return await off_loop(body, partial(_find_most, questions, found))


def _find_most(questions: Sequence[Question], models: Sequence[ServedModel]) -> int:
    """The most that any of the models costs; one that cannot take the request is not the one that answers."""
    amounts, refusal = [], None
    for model in models:
        try:
            amounts.append(_sum_most(questions, model))
        except Invalid as error:
            refusal = error
    if not amounts:
        assert refusal is not None, "a body names at least one model"
        raise refusal
    return max(amounts)


def _sum_most(questions: Sequence[Question], model: ServedModel) -> int:
    total = 0
    for question in questions:
        prompt = len(question.prompt_ids(model.render, model.tokenizer))
        most = question.params(model.record.context_tokens, prompt).max_tokens
        total += question.n * compute_fee(prompt, most, model.input_price, model.output_price)
    return total
