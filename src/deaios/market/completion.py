"""A body of the older completions API, read strictly: raw prompts, each continued `n` times.

Invariant: a body is understood completely or refused with the name of the parameter. Prompts are text or token ids, one
or several; no template is applied, and no text becomes a special token.
"""

from collections.abc import Mapping
from dataclasses import replace

from deaios.compute.logprobs import LOGPROBS_MAX
from deaios.ledger.structs import MAX_TOKENS_LIMIT, TEMPERATURE_MILLI_MAX, TOP_K_OFF, TOP_P_OFF
from deaios.market.fields import (
    InvalidParameter,
    Reader,
    integers,
    read_flag,
    read_model,
    read_models,
    read_parameters,
    read_route,
    read_routing,
    read_stop,
    read_stream_options,
    read_text,
    settle_models,
    thousandths,
    wrong_type,
)
from deaios.market.preferences import read_preferences
from deaios.market.question import CHOICES_MAX, SEED_BITS, TOP_K_MAX, Question
from deaios.primitives.encoding import Json

MAX_TOKENS = 16
"""Where the body says nothing, as in the OpenAI API."""
TOKEN_ID_MAX = (1 << 32) - 1

_NEUTRAL: Mapping[str, tuple[Json, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "suffix": (),
    "user": (),
}


def read_completion_body(body: bytes) -> tuple[Question, ...]:
    """Read a completions body: one question per prompt.

    Raises:
        InvalidBody: not one JSON object in UTF-8.
        InvalidParameter: anything in it that is not understood and offered.
    """
    found = settle_models(read_parameters(body, _READERS, _NEUTRAL, ("prompt",)))
    prompts = found.pop("prompt")
    assert isinstance(prompts, list)
    if "stream_options" in found and not found.get("stream"):
        raise InvalidParameter("stream_options", "stream_options is only allowed when stream is true")
    fields = {_RENAMED.get(name, name): value for name, value in found.items() if name != "deaios"}
    routing = found.get("deaios", {})
    assert isinstance(routing, dict)
    fields = {"max_tokens": MAX_TOKENS, "prompt_name": "prompt"} | fields | routing
    question = Question(**fields)  # type: ignore[arg-type] # each reader returns its field's type
    if len(prompts) * question.n > CHOICES_MAX:
        raise InvalidParameter(
            "n", f"{len(prompts)} prompts times n = {question.n} are wanted, at most {CHOICES_MAX} answers are allowed"
        )
    return tuple(replace(question, raw=prompt) for prompt in prompts)


def read_prompts(param: str, value: object) -> list[str | tuple[int, ...]]:
    """One prompt or several, each text or token ids; none is empty.

    Raises:
        InvalidParameter: another shape, or too many.
    """
    if isinstance(value, str):
        return [_read_prompt(param, value)]
    if not isinstance(value, list):
        raise wrong_type(param, "a string or an array", value)
    if value and not any(isinstance(item, str | list) for item in value):
        return [_read_prompt(param, value)]
    if not 0 < len(value) <= CHOICES_MAX:
        raise InvalidParameter(param, f"{param} has {len(value)} entries, allowed are 1 to {CHOICES_MAX}")
    return [_read_prompt(f"{param}[{index}]", item) for index, item in enumerate(value)]


def _read_prompt(where: str, value: object) -> str | tuple[int, ...]:
    prompt: str | tuple[int, ...]
    if isinstance(value, list):
        prompt = tuple(_READ_ID(f"{where}[{index}]", item) for index, item in enumerate(value))
    else:
        prompt = read_text(where, value)
    if not prompt:
        raise InvalidParameter(where, f"{where} is empty; a model reads at least one token")
    return prompt


_READ_ID = integers(0, TOKEN_ID_MAX)
_RENAMED = {
    "temperature": "temperature_milli",
    "top_p": "top_p_milli",
    "logprobs": "top_logprobs",
    "stream_options": "include_usage",
    "provider": "preferences",
}
_READERS: Mapping[str, Reader] = {
    "deaios": read_routing,
    "logprobs": integers(0, LOGPROBS_MAX),
    "max_tokens": integers(1, MAX_TOKENS_LIMIT),
    "model": read_model,
    "models": read_models,
    "route": read_route,
    "n": integers(1, CHOICES_MAX),
    "prompt": read_prompts,
    "provider": read_preferences,
    "seed": integers(-(1 << SEED_BITS - 1), (1 << SEED_BITS - 1) - 1),
    "stop": read_stop,
    "stream": read_flag,
    "stream_options": read_stream_options,
    "temperature": thousandths(0, TEMPERATURE_MILLI_MAX),
    "top_k": integers(TOP_K_OFF, TOP_K_MAX),
    "top_p": thousandths(1, TOP_P_OFF),
}
