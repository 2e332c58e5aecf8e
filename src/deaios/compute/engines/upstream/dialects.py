"""What is said to each kind of server, and how its answer is read: one JSON body, one JSON document at a time.

Invariants: every parameter of the ask that a server could do otherwise by itself is named in its body, so that no
default of a server stands in for what was bought; a document that is not what its kind documents is a typed error.
Stop rules are not sent: ids decide the end (`compute.generation`), and the connection is closed there.

Sources: llama.cpp tools/server/README.md; vLLM docs, "OpenAI-Compatible Server", vllm/entrypoints/openai/protocol.py;
SGLang docs, "Sampling Parameters"; Ollama docs/api.md; OpenAI API reference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final, TypeVar, assert_never

import msgspec

from deaios.compute.sampling import validate_params
from deaios.ledger.structs import GREEDY, Level, Params
from deaios.primitives.encoding import InvalidEncoding, validate_json_depth
from deaios.primitives.errors import Refused, Unavailable
from deaios.primitives.hashing import ZERO32
from deaios.primitives.units import MILLI

SEED_BITS = 31
"""What every server takes as a seed; it matters at level 0 only."""
ROOM = 2
"""How many of its own tokens a server of text may use for one of ours; what is too much is cut and not paid for."""
ROOM_TOKENS = 16
PIECE_TOKENS: Final = (4, 8, 16, 32)
"""Ids asked of llama-server at once, growing: its stream leaves ids out within a character of several tokens, and the
end id always; whole answers hold all. The last one repeats."""

XARG_SEED, XARG_TEMPERATURE, XARG_TOP_K, XARG_TOP_P = (
    "deaios_seed",
    "deaios_temperature_milli",
    "deaios_top_k",
    "deaios_top_p_milli",
)
"""Arguments of our logits processor (`deaios_vllm`), which spells them the same."""


class RefusedUpstream(Refused):
    """This server cannot do what is asked, or declined to."""


class UnavailableUpstream(Unavailable):
    """The server broke off, contradicted itself, or does not keep to its own documentation."""


class Dialect(StrEnum):
    """Kinds of servers."""

    LLAMA_SERVER = "llama-server"
    VLLM = "vllm"
    SGLANG = "sglang"
    OLLAMA = "ollama"
    COMPLETIONS = "completions"
    """Any other server with OpenAI's `/v1/completions` that takes the prompt as text."""
    CHAT = "chat"
    """Only `/v1/chat/completions`: closed APIs."""


LEVEL_MAX: Final[Mapping[Dialect, Level]] = {
    Dialect.LLAMA_SERVER: Level.GREEDY,
    Dialect.VLLM: Level.SEEDED,
    Dialect.SGLANG: Level.GREEDY,
    Dialect.OLLAMA: Level.SIGNED,
    Dialect.COMPLETIONS: Level.SIGNED,
    Dialect.CHAT: Level.SIGNED,
}
"""The most that answers of a kind can promise: whoever gives text cannot be held to ids."""
OWNERS: Final[Mapping[str, Dialect]] = {
    "llamacpp": Dialect.LLAMA_SERVER,
    "vllm": Dialect.VLLM,
    "sglang": Dialect.SGLANG,
    "library": Dialect.OLLAMA,
}
"""What `owned_by` in a server's list of models says about the server."""


class End(Enum):
    """Why a server stopped."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Order:
    """One answer wanted from a server.

    Attributes:
        model: the server's name for it.
        ids: the prompt's; for servers that take ids.
        text: the prompt's; for servers that take text.
        messages: (role, content); for servers that take messages.
        params: of the ask.
        seed: of the ask.
        level: what the answer will promise.
    """

    model: str
    ids: tuple[int, ...]
    text: str
    messages: tuple[tuple[str, str], ...]
    params: Params
    seed: bytes
    level: Level


@dataclass(frozen=True, slots=True)
class Delta:
    """What one document of an answer brought; `end_id` is the id it ended with, where the server says it apart."""

    ids: tuple[int, ...] = ()
    text: str = ""
    end: End | None = None
    end_id: int | None = None


def validate_order(dialect: Dialect, level: Level, params: Params, logprobs: int | None) -> None:
    """Refuse before anything is sent what the answer could not keep.

    Raises:
        InvalidParams: outside the protocol's bounds.
        RefusedUpstream: this kind of server, at this level, cannot do it.
    """
    validate_params(params)
    if params.mask_hash != ZERO32:
        raise RefusedUpstream("answers under a mask are not served here: the server cannot be held to it")
    if logprobs is not None:
        raise RefusedUpstream("log probabilities are not served here: they would be the server's word")
    if level == Level.GREEDY and params.temperature_milli != GREEDY:
        raise RefusedUpstream(
            f"temperature is {params.temperature_milli / MILLI:g}; answers of level 1 are for temperature 0, because "
            "nobody can recompute what this server draws"
        )
    if dialect is Dialect.CHAT and params.top_k:
        raise RefusedUpstream("top_k is set; the chat API that answers here has no such parameter")


def wants_text(dialect: Dialect) -> bool:
    """Does this kind take the prompt as text?"""
    return dialect in (Dialect.OLLAMA, Dialect.COMPLETIONS)


def build_order(dialect: Dialect, order: Order) -> tuple[str, dict[str, object]]:
    """Path and JSON body for a streamed answer; `llama-server` is asked by `build_piece` instead."""
    params = order.params
    sampling: dict[str, object] = {"temperature": params.temperature_milli / MILLI, "top_p": params.top_p_milli / MILLI}
    number = int.from_bytes(order.seed[:4]) >> (32 - SEED_BITS)
    room = params.max_tokens * ROOM + ROOM_TOKENS
    # vLLM takes a model's own defaults (generation_config.json) for everything that is not said.
    penalties: dict[str, object] = {"presence_penalty": 0, "frequency_penalty": 0}
    match dialect:
        case Dialect.VLLM:
            body = {"model": order.model, "prompt": list(order.ids), "stream": True, "max_tokens": params.max_tokens}
            body |= {"return_token_ids": True, "add_special_tokens": False, "skip_special_tokens": False}
            body |= penalties | {"repetition_penalty": 1.0, "min_p": 0.0}
            if order.level >= Level.SEEDED:
                return "/v1/completions", body | {"temperature": 0, "vllm_xargs": build_xargs(order)}
            return "/v1/completions", body | sampling | {"top_k": params.top_k or -1, "seed": number}
        case Dialect.SGLANG:
            sampling |= {"max_new_tokens": params.max_tokens, "top_k": params.top_k or -1, "skip_special_tokens": False}
            sampling |= penalties | {"min_p": 0.0, "repetition_penalty": 1.0}
            return "/generate", {"input_ids": list(order.ids), "sampling_params": sampling, "stream": True}
        case Dialect.OLLAMA:
            sampling |= {"num_predict": room, "seed": number, "top_k": params.top_k or 1 << 20, "min_p": 0.0}
            sampling |= penalties | {"repeat_penalty": 1.0}
            body = {"model": order.model, "prompt": order.text, "raw": True, "stream": True, "options": sampling}
            # a prompt longer than its context is an error, not something to shorten
            return "/api/generate", body | {"truncate": False, "shift": False}
        case Dialect.COMPLETIONS:
            body = {"model": order.model, "prompt": order.text, "stream": True, "max_tokens": room, "seed": number}
            if params.top_k:
                body["top_k"] = params.top_k
            return "/v1/completions", body | sampling
        case Dialect.CHAT:
            messages = [{"role": role, "content": content} for role, content in order.messages]
            body = {"model": order.model, "messages": messages, "stream": True, "max_completion_tokens": room}
            return "/v1/chat/completions", body | sampling
        case Dialect.LLAMA_SERVER:
            raise AssertionError("llama-server is asked in pieces")
        case _:
            assert_never(dialect)


def build_xargs(order: Order) -> dict[str, object]:
    """What `deaios_vllm` needs to draw the tokens that the seed picks."""
    return {
        XARG_SEED: order.seed[:16].hex(),
        XARG_TEMPERATURE: order.params.temperature_milli,
        XARG_TOP_K: order.params.top_k,
        XARG_TOP_P: order.params.top_p_milli,
    }


def build_piece(order: Order, output_ids: Sequence[int], count: int) -> dict[str, object]:
    """Body for llama-server's `/completion`: the next `count` ids after those that there are."""
    params = order.params
    number = int.from_bytes(order.seed[:4]) ^ len(output_ids)
    return {
        "prompt": [*order.ids, *output_ids],
        "n_predict": count,
        "temperature": params.temperature_milli / MILLI,
        "top_k": params.top_k,
        "top_p": params.top_p_milli / MILLI,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": number >> (32 - SEED_BITS),
        "samplers": ["top_k", "temperature", "top_p"],
        "return_tokens": True,
        "cache_prompt": True,
        "stream": False,
    }


class _LlamaAnswer(msgspec.Struct):
    tokens: list[int]
    stop_type: str = "none"
    truncated: bool = False


class _Fault(msgspec.Struct):
    message: str = ""


class _ChatDelta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    text: str = ""
    token_ids: list[int] | None = None
    delta: _ChatDelta | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class _OpenAiChunk(msgspec.Struct):
    choices: list[_Choice] = []
    error: _Fault | str | None = None


class _OllamaLine(msgspec.Struct):
    response: str = ""
    done: bool = False
    done_reason: str = ""
    error: str = ""


class _SglangFinish(msgspec.Struct):
    type: str = ""
    matched: int | str | None = None


class _SglangMeta(msgspec.Struct):
    completion_tokens: int = 0
    finish_reason: _SglangFinish | None = None


class _SglangLine(msgspec.Struct):
    output_ids: list[int] | None = None
    meta_info: _SglangMeta = msgspec.field(default_factory=_SglangMeta)
    error: _Fault | str | None = None


Known = TypeVar("Known", _LlamaAnswer, _OpenAiChunk, _OllamaLine, _SglangLine)
DONE = b"[DONE]"


def strip_event(line: bytes) -> bytes | None:
    """The JSON of one line of a stream: server-sent events and plain lines alike; None where there is none."""
    text = line.strip()
    if text.startswith(b"data:"):
        text = text[5:].strip()
    elif not text.startswith(b"{"):
        return None
    return None if text in (b"", DONE) else text


def read_delta(dialect: Dialect, data: bytes, taken: int) -> Delta:
    """One document of a streamed answer.

    Args:
        dialect: of the server.
        data: JSON.
        taken: ids taken from this answer so far.

    Raises:
        UnavailableUpstream: it is no such document, or says that the server failed.
    """
    match dialect:
        case Dialect.VLLM:
            return _read_choice(_decode(data, _OpenAiChunk), with_ids=True)
        case Dialect.COMPLETIONS | Dialect.CHAT:
            return _read_choice(_decode(data, _OpenAiChunk), with_ids=False)
        case Dialect.OLLAMA:
            line = _decode(data, _OllamaLine)
            _raise_fault(line.error or None)
            end = None if not line.done else End.LENGTH if line.done_reason == "length" else End.STOP
            return Delta(text=line.response, end=end)
        case Dialect.SGLANG:
            return _read_sglang(_decode(data, _SglangLine), taken)
        case Dialect.LLAMA_SERVER:
            return _read_llama(_decode(data, _LlamaAnswer))
        case _:
            assert_never(dialect)


def _decode(data: bytes, kind: type[Known]) -> Known:
    try:
        validate_json_depth(data)
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeError, InvalidEncoding) as error:
        raise UnavailableUpstream(f"the server's answer cannot be read: {error}") from error


def _raise_fault(fault: _Fault | str | None) -> None:
    if fault is not None:
        said = fault if isinstance(fault, str) else fault.message
        raise UnavailableUpstream(f"the server failed within its answer: {said[:200]}")


def _read_choice(chunk: _OpenAiChunk, *, with_ids: bool) -> Delta:
    _raise_fault(chunk.error)
    if not chunk.choices:
        return Delta()  # usage alone
    choice = chunk.choices[0]
    end = _read_finish(choice.finish_reason)
    if not with_ids:
        delta = choice.delta or _ChatDelta()
        return Delta(text=choice.text + (delta.content or "") + (delta.refusal or ""), end=end)
    if choice.token_ids is None and (choice.text or end is None):
        raise UnavailableUpstream(
            "the server gives no token ids; vLLM does since 0.10.2 where return_token_ids is asked"
        )
    said = choice.stop_reason if isinstance(choice.stop_reason, int) else None
    return Delta(ids=_validate_ids(choice.token_ids or []), end=end, end_id=said)


def _read_finish(reason: str | None) -> End | None:
    match reason:
        case None | "":
            return None
        case "length":
            return End.LENGTH
        case "stop":
            return End.STOP
        case _:
            raise UnavailableUpstream(f"the server ended its answer by {reason[:40]!r}")


def _read_sglang(line: _SglangLine, taken: int) -> Delta:
    _raise_fault(line.error)
    if line.output_ids is None:
        raise UnavailableUpstream("the server gives no output_ids; SGLang does since 0.4")
    ids, total = line.output_ids, line.meta_info.completion_tokens
    # Every document repeats all ids, unless the server was started with --incremental-streaming-output.
    fresh = ids[taken:] if len(ids) == total else ids
    if taken + len(fresh) != total:
        raise UnavailableUpstream(f"the server counts {total} tokens and gave {taken + len(fresh)}")
    finish = line.meta_info.finish_reason
    if finish is None:
        return Delta(ids=_validate_ids(fresh))
    matched = finish.matched if isinstance(finish.matched, int) else None
    return Delta(ids=_validate_ids(fresh), end=_read_finish(finish.type), end_id=matched)


def _read_llama(answer: _LlamaAnswer) -> Delta:
    if answer.truncated:
        raise UnavailableUpstream("the server left out part of the prompt; start it without --context-shift")
    end = {"eos": End.STOP, "limit": End.LENGTH}.get(answer.stop_type)
    if end is None:
        raise UnavailableUpstream(f"the server ended its answer by {answer.stop_type[:40]!r}")
    return Delta(ids=_validate_ids(answer.tokens), end=end)


def _validate_ids(ids: Sequence[int]) -> tuple[int, ...]:
    if any(not 0 <= token < 1 << 32 for token in ids):
        raise UnavailableUpstream("the server gave a token id that is none")
    return tuple(ids)
