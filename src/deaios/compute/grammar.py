"""A constraint as the grammar that the masker reads.

Pure. Invariant: one form gives one grammar; the grammar is part of what a mask hash means, so changing it is a new
protocol version (docs/spec/sampling.md, "Constraints"). Source of the notation: guidance-ai/llguidance,
docs/syntax.md. Whitespace in JSON is free but bounded, because a small model can write blanks without end.
"""

import json
from typing import Final, assert_never

from deaios.compute.constraint import Form, JsonObject, JsonSchema, ToolCalls
from deaios.compute.tools import CALL_CLOSE, CALL_OPEN, CALLS_MAX

WHITESPACE_MAX: Final = 64
"""Blanks in a row between two parts of JSON: enough to indent by four down to fifteen levels."""
_WHITESPACE: Final = rf"[\x20\x0A\x0D\x09]{{1,{WHITESPACE_MAX}}}"

_Grammar = dict[str, object]


def build_grammar(form: Form) -> str:
    """The grammar as the masker's JSON text."""
    match form:
        case JsonObject() | JsonSchema():
            grammars = [_json_grammar("start", form)]
        case ToolCalls():
            grammars = _call_grammars(form)
        case _:
            assert_never(form)
    return json.dumps({"grammars": grammars}, ensure_ascii=False)


def _json_grammar(name: str, form: JsonObject | JsonSchema) -> _Grammar:
    return _schema_grammar(name, form.schema if isinstance(form, JsonSchema) else '{"type":"object"}')


def _schema_grammar(name: str, schema: str) -> _Grammar:
    value = json.loads(schema)
    # The schema true allows what {} allows, and only an object carries options.
    rules = {**(value if isinstance(value, dict) else {}), "x-guidance": {"whitespace_pattern": _WHITESPACE}}
    return {"name": name, "json_schema": rules}


def _call_grammars(form: ToolCalls) -> list[_Grammar]:
    """Text without a call's opening, then calls; or calls alone; or other content instead of text.

    Text and opening are one token of the lexer where text may stand before a call, because a lexer does not go back to
    where a text should have ended.
    """
    calls = f"body more{{0,{CALLS_MAX - 1}}}" if form.is_parallel else "body"
    rules = [
        'body: "\\n{\\"name\\": \\"" (' + " | ".join(f"call_{index}" for index in range(len(form.tools))) + ")",
    ]
    for index, tool in enumerate(form.tools):
        opening, closing = f'{tool.name}", "arguments": ', "}\n" + CALL_CLOSE
        rules.append(f"call_{index}: {_quote(opening)} @arguments_{index} {_quote(closing)}")
    if form.is_parallel:
        rules.append(f"more: {_quote(chr(10) + CALL_OPEN)} body")
    others: list[_Grammar] = []
    if form.is_required:
        start = f"start: {_quote(CALL_OPEN)} {calls}"
    elif form.content is not None:
        start = f"start: @content | {_quote(CALL_OPEN)} {calls}"
        others.append(_json_grammar("content", form.content))
    else:
        start = f"start: TEXT | HEAD {calls}"
        rules.append(rf"TEXT: /(.|\n)*/ & ~/(.|\n)*{CALL_OPEN}(.|\n)*/")
        rules.append(f"HEAD: TEXT {_quote(CALL_OPEN)}")
    others += [_schema_grammar(f"arguments_{index}", tool.parameters) for index, tool in enumerate(form.tools)]
    return [{"name": "start", "lark_grammar": "\n".join([start, *rules])}, *others]


def _quote(text: str) -> str:
    return json.dumps(text)
