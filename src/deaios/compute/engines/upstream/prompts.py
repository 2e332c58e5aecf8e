"""What token ids say to a server that takes no ids: text that means the same ids again, or the messages behind them.

Invariant: a prompt goes out only where the server, reading it as this model's own tokenizer does, sees exactly the ids
that the buyer signed. What cannot be said so is refused, not approximated.
"""

from collections.abc import Sequence

from deaios.compute.tokenizer import Tokenizer
from deaios.primitives.errors import Refused

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
"""ChatML, the one template that is read backwards here (OpenAI, chatml.md, 2023)."""
ANSWERER = "assistant"
ROLES = frozenset({"system", "user", "assistant"})


class RefusedPrompt(Refused):
    """Token ids that cannot be said to this server in the form that it takes."""


def render_text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The prompt as text, special tokens by their names.

    Raises:
        RefusedPrompt: a server that reads special tokens in it would see other ids.
    """
    data = b"".join(tokenizer.get_bytes(token) or tokenizer.get_label(token).encode() for token in ids)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise RefusedPrompt("this prompt ends within a character; this server takes only text") from error
    pieces: list[str | int] = []
    start = 0
    for found in tokenizer.special_pattern.finditer(text):
        pieces += [text[start : found.start()], tokenizer.special_ids[found.group()]]
        start = found.end()
    pieces.append(text[start:])
    if tokenizer.encode_rendered(pieces) != tuple(ids):
        raise RefusedPrompt("this prompt, said as text, would be read as other token ids; this server takes only text")
    return text


def read_messages(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[tuple[str, str], ...]:
    """The (role, content) pairs that a ChatML prompt renders; the open turn of the answerer at its end is none.

    Special tokens delimit the turns, and text from users never becomes one, so that nothing in a message can pass for
    another turn.

    Raises:
        RefusedPrompt: not ChatML, or not a conversation that waits for its answer.
    """
    start, end = tokenizer.special_ids.get(TURN_START), tokenizer.special_ids.get(TURN_END)
    if start is None or end is None:
        raise RefusedPrompt(f"a chat server needs a template of {TURN_START} and {TURN_END}; this model has none")
    turns: list[tuple[str, str]] = []
    rest = list(ids)
    while rest:
        if rest[0] != start:
            raise RefusedPrompt("this prompt is no ChatML conversation; a chat server takes nothing else")
        last = rest.index(end) if end in rest else len(rest)
        body = rest[1:last]
        if any(token in tokenizer.special_ids.values() for token in body):
            raise RefusedPrompt("a turn of this prompt holds a special token; a chat server cannot be told so")
        role, separator, content = tokenizer.decode(body).partition("\n")
        if last == len(rest):
            if role != ANSWERER or not separator or content:
                raise RefusedPrompt("the prompt does not end where the answer begins; a chat server continues no text")
            return _validate_turns(turns)
        if not separator or role not in ROLES:
            raise RefusedPrompt(f"a turn of this prompt is by {role[:20]!r}; a chat server knows {sorted(ROLES)}")
        turns.append((role, content))
        rest = rest[last + 1 :]
        between = rest.index(start) if start in rest else len(rest)
        if tokenizer.decode(rest[:between]).strip():
            raise RefusedPrompt("there is text between the turns of this prompt; a chat server cannot be told so")
        rest = rest[between:]
    raise RefusedPrompt("the prompt does not end where the answer begins; a chat server continues no text")


def _validate_turns(turns: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    if not turns:
        raise RefusedPrompt("the prompt holds no message")
    return tuple(turns)
