"""Calls of tools in an answer's text: where they are, piece by piece as the text grows.

Pure, so whoever has the output ids sees the same calls: a gateway that streams them, a verifier that prints them. The
form is the one of the Hermes models, which Qwen and others took over (github.com/NousResearch/Hermes-Function-Calling):

    text<tool_call>
    {"name": "NAME", "arguments": {...}}
    </tool_call>

Invariants: however the text is cut into pieces, the calls are the same; nothing is lost but the markup and the white
space around it; what only looks like a call is text. It does not know which tools there are: the grammar that the
answer was sampled under holds names and arguments to them.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

from deaios.compute.tools import CALL_CLOSE, CALL_OPEN, ToolCall
from deaios.primitives.hashing import tagged_sha256

CALL_TAG = "deaios/tool-call/1"
CALL_ID_SIZE = 12
HEAD_CHARS_MAX = 512
"""From the markup to the arguments: a name of 64 characters, each written as an escape, and some white space."""
SPACE_CHARS_MAX = 256
"""White space around markup that is taken for a part of it."""
_SPACE = " \t\n\r"
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_STRING_BEGUN = re.compile(r'"(?:[^"\\]|\\.)*+\\?', re.DOTALL)
_HEAD = ("{", '"name"', ":", _STRING, ",", '"arguments"', ":", "{")
_TAIL = ("}", CALL_CLOSE)


@dataclass(frozen=True, slots=True)
class TextGrew:
    """More of the answer's own words."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegan:
    """A call of this tool begins; calls are counted from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallGrew:
    """More of the arguments of the call that began last, as they are written."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The arguments are one whole JSON object."""

    index: int


Event = TextGrew | CallBegan | CallGrew | CallEnded


class ToolText:
    """Finds calls in a text that comes in pieces.

    Attributes:
        count: calls that have begun.
        is_whole: no call has begun that has not ended.
    """

    def __init__(self) -> None:
        self.count = 0
        self.is_whole = True
        self._held = ""
        self._step: Callable[[list[Event]], bool] = self._read_text
        self._is_after_call = False
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def push(self, text: str) -> list[Event]:
        """What more text brings; text that may be markup is held back."""
        self._held += text
        events: list[Event] = []
        while self._step(events):
            pass
        return events

    def close(self) -> list[Event]:
        """What was held back, when the text has ended."""
        rest, self._held = self._held, ""
        if self._step == self._read_tail:
            return []
        if self._step == self._read_head:
            rest = CALL_OPEN + rest
        return [TextGrew(rest)] if rest else []

    def _read_text(self, events: list[Event]) -> bool:
        """Words up to markup; white space before markup, and after a call, is no part of them."""
        if self._is_after_call:
            self._held = self._held.lstrip(_SPACE)
            self._is_after_call = not self._held
        start = self._held.find(CALL_OPEN)
        end = start if start >= 0 else len(self._held) - _count_forming(self._held)
        spoken = self._held[:end]
        kept = max(len(spoken.rstrip(_SPACE)), end - SPACE_CHARS_MAX)
        if kept:
            events.append(TextGrew(spoken[:kept]))
        if start < 0:
            self._held = self._held[kept:]
            return False
        self._held = self._held[start + len(CALL_OPEN) :]
        self._step = self._read_head
        return True

    def _read_head(self, events: list[Event]) -> bool:
        places = _scan(self._held, _HEAD, HEAD_CHARS_MAX)
        if places is None:
            return False
        name = _read_name(self._held[places[2] : places[3]]) if places else None
        if name is None:
            events.append(TextGrew(CALL_OPEN))
            self._step = self._read_text
            return True
        events.append(CallBegan(self.count, name))
        self._held = self._held[places[-1] - 1 :]
        self._depth, self._in_string, self._is_escaped, self.is_whole = 0, False, False, False
        self.count += 1
        self._step = self._read_arguments
        return True

    def _read_arguments(self, events: list[Event]) -> bool:
        """One JSON object, by its brackets: whether it is valid was decided when it was sampled."""
        end = self._find_end(self._held)
        grown = self._held if end is None else self._held[:end]
        if grown:
            events.append(CallGrew(self.count - 1, grown))
        self._held = self._held[len(grown) :]
        if end is None:
            return False
        events.append(CallEnded(self.count - 1))
        self.is_whole = True
        self._step = self._read_tail
        return True

    def _find_end(self, text: str) -> int | None:
        """Where the object ends that is open."""
        for place, character in enumerate(text):
            if self._in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif character == "\\":
                    self._is_escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return place + 1
        return None

    def _read_tail(self, _events: list[Event]) -> bool:
        places = _scan(self._held, _TAIL, SPACE_CHARS_MAX)
        if places is None:
            return False
        if places:
            self._held = self._held[places[-1] :]
        self._is_after_call = True
        self._step = self._read_text
        return True


def _scan(text: str, parts: Sequence[str | re.Pattern[str]], chars_max: int) -> list[int] | None:
    """Match parts that may have white space before them, from the beginning of a text that may go on.

    Returns:
        Where each part ends; none at all where the text does not begin so; None where that is not certain yet.
    """
    places: list[int] = []
    end = 0
    for part in parts:
        begin = len(text) - len(text[end:].lstrip(_SPACE))
        rest = text[begin:]
        if isinstance(part, str):
            size = len(part) if rest.startswith(part) else None
            may_come = part.startswith(rest)
        else:
            found = part.match(rest)
            size = found.end() if found else None
            may_come = not rest or _STRING_BEGUN.fullmatch(rest) is not None
        if size is None:
            return None if may_come and len(text) <= chars_max else []
        end = begin + size
        places.append(end)
    return places if end <= chars_max else []


def _count_forming(text: str) -> int:
    """Length of the longest end of the text that begins the markup."""
    for length in range(min(len(text), len(CALL_OPEN) - 1), 0, -1):
        if CALL_OPEN.startswith(text[-length:]):
            return length
    return 0


def _read_name(quoted: str) -> str | None:
    try:
        name: str = json.loads(quoted, strict=False)
        name.encode()
    except ValueError:
        return None
    return name


@dataclass(frozen=True, slots=True)
class Spoken:
    """A whole answer.

    Attributes:
        parts: words and calls in their order; words are never empty.
        is_whole: the last call was not cut off.
    """

    parts: tuple[str | ToolCall, ...]
    is_whole: bool = True

    @property
    def text(self) -> str:
        """Its own words."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """Its calls."""
        return tuple(part for part in self.parts if isinstance(part, ToolCall))

    @property
    def whole_calls(self) -> tuple[ToolCall, ...]:
        """Those that were not cut off."""
        return self.calls if self.is_whole else self.calls[:-1]


def read_calls(text: str, digest: bytes) -> Spoken:
    """Words and calls of a whole answer.

    Args:
        text: all that was released.
        digest: 32 bytes, the ask's client digest, which names the calls.
    """
    reader = ToolText()
    parts: list[str | ToolCall] = []
    for event in (*reader.push(text), *reader.close()):
        last = parts[-1] if parts else None
        match event:
            case TextGrew():
                parts[len(parts) - isinstance(last, str) :] = [(last if isinstance(last, str) else "") + event.text]
            case CallBegan():
                parts.append(ToolCall(build_call_id(digest, event.index), event.name, ""))
            case CallGrew():
                assert isinstance(last, ToolCall)
                parts[-1] = ToolCall(last.id, last.name, last.arguments + event.text)
            case CallEnded():
                pass
            case _:
                assert_never(event)
    return Spoken(tuple(parts), reader.is_whole)


def build_call_id(digest: bytes, index: int, prefix: str = "call_") -> str:
    """What names a call: the same for every reader of the same purchase, and for a retry of it.

    Args:
        digest: 32 bytes, the ask's client digest.
        index: of the call in its answer.
        prefix: the API's.
    """
    return prefix + tagged_sha256(CALL_TAG, digest, index.to_bytes(8))[:CALL_ID_SIZE].hex()


def cut_to_members(arguments: str) -> str:
    """Arguments as the text of a JSON object; of those that were cut off, the members that are whole."""
    place = _find_last_comma(arguments)
    for text in (arguments, arguments[:place] + "}"):
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return text
    return "{}"


def _refuse_constant(text: str) -> object:
    raise ValueError(text)


def _find_last_comma(arguments: str) -> int:
    """Where the last comma between members is; 0 where there is none."""
    last = depth = 0
    in_string = is_escaped = False
    for place, character in enumerate(arguments):
        if in_string:
            in_string = is_escaped or character != '"'
            is_escaped = not is_escaped and character == "\\"
        elif character == '"':
            in_string = True
        elif character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
        elif character == "," and depth == 1:
            last = place
    return last
