"""Chat template: messages to prompt ids, as transformers renders them.

Invariant: a special token is in the prompt only where the template itself wrote it; no message and no tool can produce
one, whole or in parts. A template is a stranger's program: it runs in compute/sandbox.py, within a budget. Tools are
shown by the template where it speaks of calls as we do, and else in plain text (compute/tool_prompt.py). Knows nothing
of HTTP bodies or models.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Final

import jinja2

from deaios.compute.gguf_file import ModelFile, read_model_file
from deaios.compute.sandbox import InvalidTemplate, Sandbox, TemplateRefusal, grant_budget
from deaios.compute.tokenizer import InvalidText, Tokenizer, validate_text
from deaios.compute.tool_prompt import KEPT_WORDS, speak_plainly, speaks_tools, structure_calls
from deaios.compute.tools import CALL_ID_PATTERN, CALLS_MAX, TOOL_NAME_PATTERN, Tool, describe_tools, validate_tools
from deaios.primitives.encoding import Json, validate_json_depth
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import tagged_sha256

TEMPLATE_TAG = "deaios/template/1"
TEMPLATE_KEY = "tokenizer.chat_template"
TEMPLATE_BYTES_MAX = 1 << 16
MESSAGES_MAX = 1024
ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool"})
CONTENT_CHARACTERS_MAX = 1 << 20
"""All message text of one prompt together."""
NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
TIME_FORMAT_PATTERN: Final = re.compile(r"(?:[A-Za-z0-9 ,:/.-]|%[A-Za-z%]){1,64}", re.ASCII)
"""What strftime_now may be given: no widths, which could ask for gigabytes."""

_MARKERS: Final = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE))
"""Private-use characters: one that no message holds keeps special-looking text apart while the template runs."""

_TEMPLATE_FAULTS: Final = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What a stranger's template may raise while it compiles or runs; anything else is our own fault."""

_ESCAPE: Final = re.compile(r"\\u(?:d[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}|[0-9a-f]{4})")
"""A character as JSON in ASCII escapes it; above the basic plane as two halves (RFC 8259, 7)."""

_KEYS: Final = frozenset({"role", "content", "name", "toolCalls", "toolCallId"})

Message = Mapping[str, Json]


class InvalidMessages(Invalid):
    """Messages that are malformed, too many, too long, or that the template refuses."""


class ChatTemplate:
    """A compiled chat template; an empty one stands for a model that has none and only completes text.

    Attributes:
        source: the template's text.
        template_hash: 32 bytes over the source.
    """

    def __init__(self, source: str) -> None:
        size_bytes = len(source.encode())
        if size_bytes > TEMPLATE_BYTES_MAX:
            raise InvalidTemplate(f"chat template of {size_bytes} bytes exceeds {TEMPLATE_BYTES_MAX}")
        self.source = source
        self._speaks_tools = speaks_tools(source)
        self.template_hash = tagged_sha256(TEMPLATE_TAG, source.encode())
        sandbox = Sandbox()
        try:
            self._template = sandbox.from_string(sandbox.parse_metered(source))
        except _TEMPLATE_FAULTS as error:
            raise InvalidTemplate(f"chat template does not compile: {_describe(error)}") from error

    @classmethod
    def from_gguf(cls, path: Path) -> "ChatTemplate":
        """The template in a model file.

        Raises:
            UnavailableModelFile: it cannot be opened.
            InvalidModelFile: it is not a GGUF file.
            InvalidTemplate: the template does not compile.
        """
        return cls.of_model(read_model_file(path, wants_vocabulary=False))

    @classmethod
    def of_model(cls, model: ModelFile) -> "ChatTemplate":
        """The template of an open model file; the empty one where it has none."""
        return cls(model.get_text(TEMPLATE_KEY) if TEMPLATE_KEY in model.metadata else "")

    def render_ids(
        self, messages: Sequence[Message], tokenizer: Tokenizer, now: str = "", tools: Sequence[Tool] = ()
    ) -> tuple[int, ...]:
        """Prompt ids of a conversation, up to where the assistant's answer begins.

        Args:
            messages: objects with `role`, `content` and optionally `name`, `toolCalls`, `toolCallId`.
            tokenizer: of the same model.
            now: ISO 8601 time that the template may print; empty when it must not.
            tools: what the model may call.

        Raises:
            InvalidMessages: malformed, or refused by the template.
            InvalidConstraint: a tool is malformed.
            InvalidTemplate: the template fails or exceeds its budget.
        """
        validate_messages(messages)
        if not self.source:
            raise InvalidMessages("this model has no chat template; it completes text (POST /v1/completions)")
        validate_tools(tools)
        if self._speaks_tools:
            turns: list[dict[str, object]] = [structure_calls(message) for message in messages]
            shown = describe_tools(tools)
        else:
            turns, shown = [{**message} for message in speak_plainly(messages, tools)], []
        marker = _choose_marker([self.source, now, *_texts_of(turns), *_texts_of(shown)])
        guarded = [_guard_message(turn, tokenizer, marker) for turn in turns]
        text = self._render(guarded, [_guard_value(item, tokenizer, marker) for item in shown], tokenizer, now)
        said = [value for turn in turns for key, value in turn.items() if key != "role"]
        own = frozenset(filter(None, map(str.strip, _texts_of([said, shown]))))
        ids: list[int] = []
        end = 0
        for match in tokenizer.special_pattern.finditer(text):
            ids += _encode(_unguard(text[end : match.start()], marker), own, tokenizer)
            ids.append(tokenizer.special_ids[match[0]])
            end = match.end()
        ids += _encode(_unguard(text[end:], marker), own, tokenizer)
        return tuple(ids)

    def _render(
        self, messages: Sequence[dict[str, object]], tools: Sequence[object], tokenizer: Tokenizer, now: str
    ) -> str:
        # Without a time the function is not there at all, so that templates which ask whether it is show another date.
        clock = {"strftime_now": lambda layout: _format_time(now, layout)} if now else {}
        try:
            with grant_budget():
                return self._template.render(
                    messages=messages,
                    tools=list(tools) or None,
                    documents=None,
                    add_generation_prompt=True,
                    **clock,
                    **tokenizer.named_specials,
                )
        except TemplateRefusal as error:
            raise InvalidMessages(f"the model's chat template refuses these messages: {error}") from error
        except _TEMPLATE_FAULTS as error:
            raise InvalidTemplate(f"chat template fails: {_describe(error)}") from error


def validate_messages(messages: Sequence[Message]) -> None:
    """Check shape and bounds.

    Raises:
        InvalidMessages: names the message and the rule.
    """
    if not 1 <= len(messages) <= MESSAGES_MAX:
        raise InvalidMessages(f"{len(messages)} messages, 1 to {MESSAGES_MAX} allowed")
    total = 0
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys() <= _KEYS:
            raise InvalidMessages(
                f"message {index} is not an object of role, content and optionally name, toolCalls, toolCallId"
            )
        role, content, name = message["role"], message["content"], message.get("name", "none")
        if not isinstance(role, str) or role not in ROLES:
            raise InvalidMessages(f"message {index}: role {str(role)[:40]!r} is not one of {', '.join(sorted(ROLES))}")
        if not isinstance(content, str):
            raise InvalidMessages(f"message {index}: content is {type(content).__name__}, text expected")
        if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
            raise InvalidMessages(f"message {index}: name is not {NAME_PATTERN.pattern}")
        total += len(content) + _validate_calls(index, message)
        try:
            validate_text(content)
        except InvalidText as error:
            raise InvalidMessages(f"message {index}: {error}") from error
    if total > CONTENT_CHARACTERS_MAX:
        raise InvalidMessages(f"messages hold {total} characters, at most {CONTENT_CHARACTERS_MAX} allowed")


def _validate_calls(index: int, message: Message) -> int:
    """Check what ties a message to calls; returns how many characters the arguments have."""
    if "toolCallId" in message:
        call_id = message["toolCallId"]
        if message["role"] != "tool" or not isinstance(call_id, str) or not CALL_ID_PATTERN.fullmatch(call_id):
            raise InvalidMessages(f"message {index}: toolCallId is for role tool, and is {CALL_ID_PATTERN.pattern}")
    if "toolCalls" not in message:
        return 0
    calls = message["toolCalls"]
    if message["role"] != "assistant" or not isinstance(calls, list | tuple) or not 1 <= len(calls) <= CALLS_MAX:
        raise InvalidMessages(f"message {index}: toolCalls is for role assistant, and has 1 to {CALLS_MAX} calls")
    total = 0
    for call in calls:
        if not isinstance(call, Mapping) or call.keys() != {"id", "name", "arguments"}:
            raise InvalidMessages(f"message {index}: a call is not an object of id, name and arguments")
        for name, pattern in (("id", CALL_ID_PATTERN), ("name", TOOL_NAME_PATTERN)):
            if not isinstance(call[name], str) or not pattern.fullmatch(str(call[name])):
                raise InvalidMessages(f"message {index}: {name} of a call is not {pattern.pattern}")
        arguments = call["arguments"]
        try:
            validate_text(arguments if isinstance(arguments, str) else "\ud800")
            validate_json_depth(str(arguments).encode())
        except Invalid as error:
            raise InvalidMessages(f"message {index}: arguments of a call are not plain text: {error}") from error
        total += len(str(arguments))
    return total


def _texts_of(value: object) -> list[str]:
    """Every text in a JSON value, keys too."""
    texts, pending = [], [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            texts.append(item)
        elif isinstance(item, Mapping):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            pending += item
    return texts


def _choose_marker(texts: Sequence[str]) -> str:
    """A private-use character that no text holds, neither as it is nor as JSON escapes it; found in one pass."""
    first = chr(_MARKERS[0])
    if not any(first in text or _escaped(first) in text for text in texts):
        return first
    used = set().union(*texts)
    escapes = {escape for text in texts for escape in _ESCAPE.findall(text)}
    for code in _MARKERS:
        if chr(code) not in used and _escaped(chr(code)) not in escapes:
            return chr(code)
    raise InvalidMessages("messages hold every private-use character; one must be left for the template")


@lru_cache(maxsize=16)
def _escaped(marker: str) -> str:
    """How a template writes it that asks for JSON in ASCII."""
    return json.dumps(marker)[1:-1]


def _encode(text: str, own: frozenset[str], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of a piece between special tokens.

    What holds none of the conversation's words is the template's own, the same in every prompt, and remembered; words
    of people are not, so that nobody can tell from timing what others wrote.
    """
    if any(words in text for words in own):
        return tokenizer.encode_plain(text)
    return tokenizer.encode_often(text)


def _unguard(text: str, marker: str) -> str:
    return text.replace(marker, "").replace(_escaped(marker), "")


def _guard_message(message: Mapping[str, object], tokenizer: Tokenizer, marker: str) -> dict[str, object]:
    """Break special-looking text; roles stay, which come from a fixed list: templates build tokens of them."""
    return {key: value if key == "role" else _guard_value(value, tokenizer, marker) for key, value in message.items()}


def _guard_value(value: object, tokenizer: Tokenizer, marker: str) -> object:
    """The same in every text of a JSON value; words of schemas stay, by which templates tell types apart."""
    if isinstance(value, str):
        return value if value in KEPT_WORDS else _guard(value, tokenizer, marker)
    if isinstance(value, Mapping):
        return {
            str(_guard_value(key, tokenizer, marker)): _guard_value(item, tokenizer, marker)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_guard_value(item, tokenizer, marker) for item in value]
    return value


def _guard(text: str, tokenizer: Tokenizer, marker: str) -> str:
    """Put a marker inside whatever could become part of a special token, next to its first or last character.

    A special token that overlaps this text starts in it, ends in it, or has all of it inside.
    """
    for character in tokenizer.special_starts:
        text = text.replace(character, character + marker)
    for character in tokenizer.special_ends:
        text = text.replace(character, marker + character)
    core = text.strip()
    is_short = 0 < len(core) <= tokenizer.special_characters_max
    if is_short and marker not in core and any(core in special for special in tokenizer.special_ids):
        text = text.replace(core[0], core[0] + marker, 1)
    return text


def _format_time(now: str, layout: object) -> str:
    if not isinstance(layout, str) or not TIME_FORMAT_PATTERN.fullmatch(layout):
        raise InvalidTemplate(f"chat template: time format {str(layout)[:80]!r} is refused")
    try:
        return datetime.fromisoformat(now).strftime(layout)
    except ValueError as error:
        raise InvalidMessages(f"the context's now, {now[:40]!r}, is not an ISO 8601 time") from error


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
