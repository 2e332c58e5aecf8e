"""Tools that a model may call, and the plain text in which it calls them.

Pure values. A call is text in every model: `<tool_call>`, a line with one JSON object, `</tool_call>`; nothing of it
is a special token. The form is that of Hermes and Qwen (NousResearch/Hermes-Function-Calling, README).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from deaios.compute.schema import InvalidConstraint, decode_json_text, encode_json_text, validate_schema

CALL_OPEN: Final = "<tool_call>"
CALL_CLOSE: Final = "</tool_call>"
CALLS_MAX: Final = 16
"""Calls of one answer; far more than models make at once."""
TOOLS_MAX: Final = 128
"""The OpenAI API's own bound."""
DESCRIPTION_CHARACTERS_MAX: Final = 8192
TOOL_NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
CALL_ID_PATTERN: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the caller offers.

    Attributes:
        name: as `TOOL_NAME_PATTERN`.
        description: for the model; may be empty.
        parameters: JSON text of a schema, as `schema.encode_json_text` writes it.
    """

    name: str
    description: str
    parameters: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an earlier turn made; `arguments` is JSON text, as in the OpenAI API."""

    id: str
    name: str
    arguments: str


def validate_tools(tools: Sequence[Tool]) -> None:
    """Check names, bounds and every schema.

    Raises:
        InvalidConstraint: its path begins with the tool's place, `tools[2].parameters`.
    """
    if len(tools) > TOOLS_MAX:
        raise InvalidConstraint("tools", f"{len(tools)} tools, at most {TOOLS_MAX} are taken")
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if not TOOL_NAME_PATTERN.fullmatch(tool.name):
            raise InvalidConstraint(f"{where}.name", f"{tool.name[:80]!r} is not {TOOL_NAME_PATTERN.pattern}")
        if tool.name in seen:
            raise InvalidConstraint(f"{where}.name", f"{tool.name!r} is there twice")
        seen.add(tool.name)
        if len(tool.description) > DESCRIPTION_CHARACTERS_MAX:
            rule = f"{len(tool.description)} characters, at most {DESCRIPTION_CHARACTERS_MAX} are taken"
            raise InvalidConstraint(f"{where}.description", rule)
        validate_parameters(f"{where}.parameters", tool.parameters)


def validate_parameters(where: str, text: str) -> None:
    """Check the schema of a tool's arguments: JSON text, an object's schema, with what can be enforced.

    Raises:
        InvalidConstraint: names the path.
    """
    schema = decode_json_text(where, text)
    validate_schema(schema, where)
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise InvalidConstraint(where, "the schema of a tool's arguments must be of type object")


def describe_tools(tools: Sequence[Tool]) -> list[dict[str, object]]:
    """The tools as transformers' templates take them (huggingface/transformers, "Tool use")."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": json.loads(tool.parameters),
            },
        }
        for tool in tools
    ]


def encode_tools(tools: Sequence[Tool]) -> str:
    """The tools as one JSON text, keys in order: what a context binds."""
    return encode_json_text(describe_tools(tools))
