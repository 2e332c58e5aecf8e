"""How tools, calls and their results are shown to a model: through its template, or in plain text.

Pure. A template that writes `<tool_call>` from `tools` speaks of calls as the grammar forces them (compute/grammar.py),
and gets what transformers would give it. Every other template, whether it ignores tools or spells calls in another way,
gets conversations that show tools in plain text, in the words that Qwen and Hermes models were trained on; a model that
was not learns them from the prompt. Frozen with docs/spec/sampling.md, "Tools in the prompt": prompts are recomputed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

from deaios.compute.tools import CALL_CLOSE, CALL_OPEN, Tool, describe_tools
from deaios.primitives.encoding import Json

KEPT_WORDS: Final = frozenset(
    (
        *("additionalProperties", "anyOf", "arguments", "array", "boolean", "content", "default", "description"),
        *("enum", "function", "id", "integer", "items", "name", "null", "number", "object", "parameters"),
        *("properties", "required", "string", "tool_call_id", "tool_calls", "type"),
    )
)
"""Words by which templates find their way in tools and calls; none is a special token, or part of one's edge."""
_TOOLS_WORD: Final = re.compile(r"\btools\b")

_PREAMBLE: Final = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
"""As in the chat template of Qwen2.5 (Apache 2.0)."""


def speaks_tools(source: str) -> bool:
    """Does a template show tools, and calls in our form?"""
    return CALL_OPEN in source and _TOOLS_WORD.search(source) is not None


def structure_calls(message: Mapping[str, Json]) -> dict[str, object]:
    """A message as transformers' templates take it, arguments as an object where they are one."""
    turn: dict[str, object] = {key: message[key] for key in ("role", "content", "name") if key in message}
    if "toolCallId" in message:
        turn["tool_call_id"] = message["toolCallId"]
    if "toolCalls" in message:
        turn["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": _parse_arguments(str(call["arguments"]))},
            }
            for call in _calls_of(message)
        ]
    return turn


def speak_plainly(messages: Sequence[Mapping[str, Json]], tools: Sequence[Tool]) -> list[dict[str, Json]]:
    """A conversation in which tools, calls and results are text.

    Tools end the system turn, or are one of their own; calls follow an assistant's words; results that follow each
    other make one turn of the user.
    """
    turns: list[dict[str, Json]] = []
    was_result = False
    for message in messages:
        turn: dict[str, Json] = {key: message[key] for key in ("role", "content", "name") if key in message}
        is_result = "toolCallId" in message
        if "toolCalls" in message:
            turn["content"] = "\n".join([*filter(None, [str(turn["content"])]), *map(_write_call, _calls_of(message))])
        if is_result:
            turn = {"role": "user", "content": f"<tool_response>\n{turn['content']}\n</tool_response>"}
        if is_result and was_result:
            turns[-1]["content"] = f"{turns[-1]['content']}\n{turn['content']}"
        else:
            turns.append(turn)
        was_result = is_result
    return _introduce(tools, turns) if tools else turns


def _introduce(tools: Sequence[Tool], turns: list[dict[str, Json]]) -> list[dict[str, Json]]:
    lines = "\n".join(json.dumps(item, ensure_ascii=False) for item in describe_tools(tools))
    preamble = _PREAMBLE.format(tools=lines)
    first = turns[0]
    if first["role"] in ("system", "developer"):
        return [{**first, "content": f"{first['content']}\n\n{preamble}"}, *turns[1:]]
    return [{"role": "system", "content": preamble}, *turns]


def _write_call(call: Mapping[str, Json]) -> str:
    name = json.dumps(call["name"])
    return f'{CALL_OPEN}\n{{"name": {name}, "arguments": {call["arguments"]}}}\n{CALL_CLOSE}'


def _calls_of(message: Mapping[str, Json]) -> list[Mapping[str, Json]]:
    calls = message["toolCalls"]
    assert isinstance(calls, list | tuple), "validated"
    return [call for call in calls if isinstance(call, Mapping)]


def _parse_arguments(text: str) -> object:
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text
