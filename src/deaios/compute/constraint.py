"""What an answer's text is held to: any JSON object, a JSON schema, or calls of tools.

Pure. Invariant: a constraint has one spelling as bytes, and with the tokenizer those bytes decide which ids may follow
any output. `Params.mask_hash` binds them, the ask's model record binds the tokenizer. The masker, a library in one
exact version, is part of the bytes: who has another version computes perhaps other masks, knows it, and says so instead
of judging. Frozen: docs/spec/sampling.md, "Constraints". Knows nothing of how masks are computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, assert_never

import msgspec

from deaios.compute.schema import InvalidConstraint, decode_json_text, encode_json_text, validate_schema
from deaios.compute.tools import TOOLS_MAX, Tool, validate_tools
from deaios.primitives.encoding import Json, encode_canonical_json
from deaios.primitives.hashing import ZERO32, tagged_sha256

MASK_TAG: Final = "deaios/mask/1"
MASKER: Final = "llguidance 1.9.1"
"""Library and exact version; pyproject.toml pins the same."""
CONSTRAINT_BYTES_MAX: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class JsonObject:
    """Any JSON object."""


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """A JSON value that a schema allows; the schema as text, because the order of its keys is that of the answer."""

    schema: str


@dataclass(frozen=True, slots=True)
class CallableTool:
    """A tool as far as it shapes an answer: its name, and the schema of its arguments as text."""

    name: str
    parameters: str


@dataclass(frozen=True, slots=True)
class ToolCalls:
    """Calls of these tools.

    Attributes:
        tools: at least one.
        is_required: whether the answer must begin with a call; otherwise it may also be text, or text before calls.
        is_parallel: whether there may be several calls.
        content: what an answer without calls must be; None for any text. With it no text stands before calls.
    """

    tools: tuple[CallableTool, ...]
    is_required: bool
    is_parallel: bool
    content: JsonObject | JsonSchema | None = None


Form = JsonObject | JsonSchema | ToolCalls


class Choice(StrEnum):
    """Whether tools are called, as the OpenAI API's `tool_choice` says it."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class Constraint:
    """A form, and who computes its masks."""

    form: Form
    masker: str = MASKER

    def encode(self) -> bytes:
        """The canonical bytes.

        Raises:
            InvalidConstraint: they are too many.
        """
        data = encode_canonical_json({"masker": self.masker, **_encode_form(self.form)})
        if len(data) > CONSTRAINT_BYTES_MAX:
            raise InvalidConstraint("", f"constraint of {len(data)} bytes exceeds {CONSTRAINT_BYTES_MAX}")
        return data

    def mask_hash(self) -> bytes:
        """The 32 bytes that parameters carry."""
        return hash_constraint(self.encode())


def hash_constraint(constraint: bytes | None) -> bytes:
    """The mask hash of a constraint's canonical bytes; 32 zero bytes for none."""
    return ZERO32 if constraint is None else tagged_sha256(MASK_TAG, constraint)


def validate_constraint_hash(constraint: bytes | None, mask_hash: bytes) -> None:
    """Check that a constraint is the one that parameters name.

    Raises:
        InvalidConstraint: another, or none.
    """
    found = hash_constraint(constraint)
    if found != mask_hash:
        raise InvalidConstraint("", f"the constraint at hand gives mask hash 0x{found.hex()}, not 0x{mask_hash.hex()}")


def json_object() -> Constraint:
    """Any JSON object."""
    return Constraint(JsonObject())


def json_schema(schema: Mapping[str, object], where: str = "$") -> Constraint:
    """A JSON value of a schema.

    Args:
        schema: parsed, keys in the order in which the answer shall have them.
        where: what the schema's place is called in messages.

    Raises:
        InvalidConstraint: it cannot be enforced; path and rule.
    """
    text = encode_json_text(schema)
    validate_schema(decode_json_text(where, text), where)
    return Constraint(JsonSchema(text))


def tool_calls(
    tools: Sequence[Tool], choice: Choice | str, parallel: bool, content: Constraint | None = None
) -> Constraint | None:
    """Calls of tools.

    Args:
        tools: all that are offered.
        choice: a `Choice`, or a tool, which must then be called.
        parallel: whether there may be several calls.
        content: what an answer without calls must be, where it is not free text.

    Returns:
        None where nothing is constrained.

    Raises:
        InvalidConstraint: a tool cannot be enforced, or there is none of that name; path and rule.
    """
    validate_tools(tools)
    if choice is Choice.NONE or (choice is Choice.AUTO and not tools):
        return content
    callables = tuple(CallableTool(tool.name, tool.parameters) for tool in tools)
    if not isinstance(choice, Choice):
        callables = tuple(item for item in callables if item.name == choice)
        if not callables:
            raise InvalidConstraint("tool_choice", f"no tool is called {choice[:80]!r}")
    if not callables:
        raise InvalidConstraint("tools", "a call is required, but no tool is offered")
    inner = None if content is None else content.form
    assert inner is None or isinstance(inner, JsonObject | JsonSchema), "tools do not stand within tools"
    is_required = choice is not Choice.AUTO
    return Constraint(ToolCalls(callables, is_required, parallel, None if is_required else inner))


def decode_constraint(data: bytes) -> Constraint:
    """Read a constraint from its canonical bytes.

    Raises:
        InvalidConstraint: too long, another shape or spelling, or with a schema that cannot be enforced.
    """
    if len(data) > CONSTRAINT_BYTES_MAX:
        raise InvalidConstraint("", f"constraint of {len(data)} bytes exceeds {CONSTRAINT_BYTES_MAX}")
    try:
        # Typed, so that nothing nests deeper than the format does; schemas are text in it.
        value = msgspec.json.decode(data, type=_ConstraintJson)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidConstraint("", f"constraint is not of its form: {error}") from error
    constraint = Constraint(_read_form(value), value.masker)
    try:
        is_canonical = constraint.encode() == data
    except UnicodeEncodeError as error:
        raise InvalidConstraint("", "constraint holds a lone surrogate") from error
    if not is_canonical:
        raise InvalidConstraint("", "constraint is not in its canonical spelling")
    return constraint


class _CallableJson(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    parameters: str


class _ContentJson(msgspec.Struct, forbid_unknown_fields=True):
    kind: Literal["json_object", "json_schema"]
    schema: str | msgspec.UnsetType = msgspec.UNSET


class _ConstraintJson(msgspec.Struct, forbid_unknown_fields=True):
    """A constraint as JSON: `masker`, `kind`, and what the kind holds."""

    masker: str
    kind: Literal["json_object", "json_schema", "tool_calls"]
    schema: str | msgspec.UnsetType = msgspec.UNSET
    tools: list[_CallableJson] | msgspec.UnsetType = msgspec.UNSET
    required: bool = False
    parallel: bool = False
    content: _ContentJson | None = None


def _encode_form(form: Form) -> dict[str, Json]:
    match form:
        case JsonObject():
            return {"kind": "json_object"}
        case JsonSchema(schema):
            return {"kind": "json_schema", "schema": schema}
        case ToolCalls():
            return {
                "kind": "tool_calls",
                "tools": [{"name": item.name, "parameters": item.parameters} for item in form.tools],
                "required": form.is_required,
                "parallel": form.is_parallel,
                "content": None if form.content is None else _encode_form(form.content),
            }
        case _:
            assert_never(form)


def _read_form(value: _ConstraintJson) -> Form:
    if value.kind == "tool_calls":
        return _read_calls(value)
    if value.tools is not msgspec.UNSET:
        raise InvalidConstraint("", f"a constraint of kind {value.kind} has no tools")
    return _read_json_form(value.kind, value.schema, "$")


def _read_calls(value: _ConstraintJson) -> ToolCalls:
    if value.tools is msgspec.UNSET or not 1 <= len(value.tools) <= TOOLS_MAX:
        raise InvalidConstraint("tools", f"a constraint of kind tool_calls has 1 to {TOOLS_MAX} tools")
    validate_tools([Tool(item.name, "", item.parameters) for item in value.tools])
    shown = value.content
    content = None if shown is None else _read_json_form(shown.kind, shown.schema, "content")
    if content is not None and value.required:
        raise InvalidConstraint("content", "an answer that must begin with a call has no other content")
    callables = tuple(CallableTool(item.name, item.parameters) for item in value.tools)
    return ToolCalls(callables, value.required, value.parallel, content)


def _read_json_form(
    kind: Literal["json_object", "json_schema"], schema: str | msgspec.UnsetType, where: str
) -> JsonObject | JsonSchema:
    if (kind == "json_schema") != isinstance(schema, str):
        raise InvalidConstraint("", "a constraint has a schema exactly when it is of kind json_schema")
    if not isinstance(schema, str):
        return JsonObject()
    validate_schema(decode_json_text(where, schema), where)
    return JsonSchema(schema)
