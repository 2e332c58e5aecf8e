"""A body of the embeddings API, read strictly: texts or token ids, each of which becomes one vector.

Invariant: a body is understood completely or refused with the name of the parameter. No template is applied, and no
text becomes a special token. Each input is a purchase of its own, so each vector has its own receipt.
"""

from collections.abc import Mapping

from deaios.market.completion import read_prompts
from deaios.market.fields import InvalidParameter, Reader, read_model, read_parameters, read_routing, read_text
from deaios.market.preferences import read_preferences
from deaios.market.question import Question, VectorForm
from deaios.primitives.encoding import Json

_FORMS = {"float": VectorForm.FLOAT, "base64": VectorForm.BASE64}
_NEUTRAL: Mapping[str, tuple[Json, ...]] = {"user": ()}


def read_embedding_body(body: bytes) -> tuple[Question, ...]:
    """Read an embeddings body: one question per input.

    Raises:
        InvalidBody: not one JSON object in UTF-8.
        InvalidParameter: anything in it that is not understood and offered.
    """
    found = read_parameters(body, _READERS, _NEUTRAL, ("model", "input"))
    inputs = found["input"]
    assert isinstance(inputs, list)
    fields = {name: value for name, value in found.items() if name in ("model",)}
    if "provider" in found:
        fields["preferences"] = found["provider"]
    routing = found.get("deaios", {})
    assert isinstance(routing, dict)
    form = found.get("encoding_format", VectorForm.FLOAT)
    fields |= {"prompt_name": "input", "vector": form} | routing
    # each reader returns its field's type
    return tuple(Question(raw=item, **fields) for item in inputs)  # type: ignore[arg-type]


def _read_form(param: str, value: object) -> VectorForm:
    form = _FORMS.get(read_text(param, value))
    if form is None:
        raise InvalidParameter(param, f"{param} is {value!r:.80}, allowed are {sorted(_FORMS)}")
    return form


def _refuse_dimensions(param: str, value: object) -> int:
    says = "vectors have the model's own size, because a cut one could not be checked against its receipt; leave it out"
    raise InvalidParameter(param, f"{param} is {value!r:.80}: {says}", "unsupported_parameter")


_READERS: Mapping[str, Reader] = {
    "deaios": read_routing,
    "dimensions": _refuse_dimensions,
    "encoding_format": _read_form,
    "input": read_prompts,
    "model": read_model,
    "provider": read_preferences,
}
