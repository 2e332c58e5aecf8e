"""The client of one upstream server: finds out what it is, checks what it claims, and streams ids out of it.

Invariant: an answer ends where the record's own rules end it (`compute.generation`); a server that stops elsewhere
broke its answer off, and nothing is made up in its place. Closing the stream closes the connection, which is how these
servers are told to stop. The API key goes into one header and nowhere else.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec

from deaios.compute.engine import EngineProfile
from deaios.compute.engines.upstream.dialects import (
    LEVEL_MAX,
    OWNERS,
    PIECE_TOKENS,
    XARG_SEED,
    Delta,
    Dialect,
    End,
    Order,
    RefusedUpstream,
    UnavailableUpstream,
    build_order,
    build_piece,
    read_delta,
    strip_event,
    validate_order,
    wants_text,
)
from deaios.compute.engines.upstream.prompts import read_messages, render_text
from deaios.compute.engines.upstream.texts import Retokenizer, find_end_id
from deaios.compute.generation import Generation, Sampled
from deaios.compute.tokenizer import InvalidText, Tokenizer
from deaios.ledger.structs import Level, Params
from deaios.primitives.errors import ConfigError, Invalid
from deaios.runtime.client import STREAM_IDLE_S, HttpClient, InvalidResponse, RefusedByPeer, UnavailablePeer

OPENING_S = 10.0
"""For what is asked of a server before it is offered; it is idle then."""
BUSY = 429
PROBE_TEXT = "Numbers 12345, naïve words,\n\n\ttabs and 東京 🦄."
"""Where tokenizers differ: digits, accents, white space, other scripts."""


@dataclass(frozen=True, slots=True)
class UpstreamChoice:
    """What an operator says about a server; what is left out is found out.

    Attributes:
        url: base URL, with or without `/v1`.
        model: the server's name for the model; needed where it has several.
        api_key: sent as a bearer token; empty for none.
        dialect: kind of server.
        level: what its answers shall promise.
        idle_s: longest silence within an answer.
    """

    url: str
    model: str = ""
    api_key: str = field(default="", repr=False)
    dialect: Dialect | None = None
    level: Level | None = None
    idle_s: float = STREAM_IDLE_S

    @property
    def base(self) -> str:
        """The URL that paths are appended to."""
        return self.url.rstrip("/").removesuffix("/v1")

    @property
    def headers(self) -> Mapping[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


class _ModelMeta(msgspec.Struct):
    n_vocab: int = 0


class _Model(msgspec.Struct):
    id: str
    owned_by: str = ""
    max_model_len: int | None = None
    meta: _ModelMeta | None = None


class _Models(msgspec.Struct):
    data: list[_Model] = []


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Settings(msgspec.Struct):
    n_ctx: int = 0


class _Props(msgspec.Struct):
    default_generation_settings: _Settings = msgspec.field(default_factory=_Settings)
    build_info: str = ""


class _Version(msgspec.Struct):
    version: str = ""


class _Error(msgspec.Struct):
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _Error | str = ""


class Upstream:
    """One model of one server. Any number of answers at once."""

    def __init__(
        self,
        http: HttpClient,
        choice: UpstreamChoice,
        tokenizer: Tokenizer,
        *,
        model: str,
        dialect: Dialect,
        level: Level,
        version: str,
        context_tokens: int | None,
    ) -> None:
        self._http = http
        self._choice = choice
        self._tokenizer = tokenizer
        self._model = model
        self.dialect = dialect
        self.level = level
        self.context_tokens = context_tokens
        self.profile = EngineProfile(
            name="upstream",
            build=f"{dialect} {version}".strip(),
            noise_class="unknown",
            details={
                "model": model,
                "level": int(level),
                "ids": not wants_text(dialect) and dialect is not Dialect.CHAT,
            },
        )

    async def generate(
        self, prompt_ids: tuple[int, ...], params: Params, seed: bytes, logprobs: int | None = None
    ) -> AsyncGenerator[Sampled, None]:
        """Ids of one answer as they come; close the iterator to stop the server.

        Raises:
            InvalidParams: outside the protocol's bounds.
            RefusedUpstream, RefusedPrompt: this server cannot do it, or declines before the first id.
            UnavailableUpstream: it cannot be reached, broke off, or ended where nothing ends.
        """
        validate_order(self.dialect, self.level, params, logprobs)
        order = Order(
            model=self._model,
            ids=prompt_ids,
            text=render_text(prompt_ids, self._tokenizer) if wants_text(self.dialect) else "",
            messages=read_messages(prompt_ids, self._tokenizer) if self.dialect is Dialect.CHAT else (),
            params=params,
            seed=seed,
            level=self.level,
        )
        generation = Generation(len(prompt_ids), params, seed, self._tokenizer)
        try:
            async with aclosing(self._draw(order)) as ids:
                async for token in ids:
                    sampled = generation.accept(token)
                    yield sampled
                    if sampled.finish is not None:
                        return
        except InvalidText as error:
            raise UnavailableUpstream(f"the server's answer is not this record's: {error}") from error
        except (UnavailablePeer, RefusedByPeer, InvalidResponse) as error:
            raise _explain(error, has_begun=bool(generation.output_ids)) from error
        count = len(generation.output_ids)
        raise UnavailableUpstream(f"the server ended its answer after {count} tokens, where the record's rules do not")

    async def _draw(self, order: Order) -> AsyncGenerator[int, None]:
        """Ids until the server is done; whoever reads stops at the end of the answer."""
        in_pieces = self.dialect is Dialect.LLAMA_SERVER
        deltas = self._draw_pieces(order) if in_pieces else self._draw_stream(order)
        has_ids = not wants_text(self.dialect) and self.dialect is not Dialect.CHAT
        words = Retokenizer(self._tokenizer)
        last = -1
        async with aclosing(deltas):
            async for delta in deltas:
                for token in delta.ids if has_ids else words.push(delta.text):
                    last = token
                    yield token
                if delta.end is None:
                    continue
                if has_ids and delta.end_id is not None and delta.end_id != last:
                    yield delta.end_id
                if not has_ids:
                    for token in words.close():
                        yield token
                    if delta.end is End.STOP:
                        yield find_end_id(self._tokenizer)
                return
        raise UnavailableUpstream("the server closed its stream before the end of the answer")

    async def _draw_stream(self, order: Order) -> AsyncGenerator[Delta, None]:
        path, body = build_order(self.dialect, order)
        lines = self._http.stream_lines(
            self._choice.base + path, msgspec.json.encode(body), self._choice.headers, idle_s=self._choice.idle_s
        )
        taken = 0
        async with aclosing(lines):
            async for line in lines:
                data = strip_event(line)
                if data is not None:
                    delta = read_delta(self.dialect, data, taken)
                    taken += len(delta.ids)
                    yield delta

    async def _draw_pieces(self, order: Order) -> AsyncGenerator[Delta, None]:
        ids: list[int] = []
        url = f"{self._choice.base}/completion"
        for place in range(order.params.max_tokens):  # bounded: every piece brings an id or ends the answer
            count = min(PIECE_TOKENS[min(place, len(PIECE_TOKENS) - 1)], order.params.max_tokens - len(ids))
            body = msgspec.json.encode(build_piece(order, ids, count))
            sent = {"Content-Type": "application/json", **self._choice.headers}
            try:
                async with asyncio.timeout(self._choice.idle_s):
                    data = await self._http.request("POST", url, body=body, headers=sent)
            except TimeoutError as error:
                raise UnavailablePeer(f"{url}: silent for {self._choice.idle_s:g} s") from error
            delta = read_delta(self.dialect, data, len(ids))
            ids += delta.ids
            if len(ids) >= order.params.max_tokens or delta.end is End.STOP:
                yield delta
                return
            if not delta.ids:
                raise UnavailableUpstream("the server gave no ids and no end")
            yield Delta(ids=delta.ids)


def _explain(error: UnavailablePeer | RefusedByPeer | InvalidResponse, *, has_begun: bool) -> Exception:
    """A failure of the exchange as what it means for a purchase: before the first id, a busy server declines."""
    if has_begun or isinstance(error, InvalidResponse):
        return UnavailableUpstream(f"the server broke off: {error}")
    if isinstance(error, RefusedByPeer):
        said = _read_refusal(error.body) or error.detail
        if error.status == BUSY:
            return RefusedUpstream(f"the server is busy: {said}")
        return RefusedUpstream(f"the server declines: {error.status} {said}")
    if error.status:
        return RefusedUpstream(f"the server cannot serve now: {error.status}")
    return UnavailableUpstream(str(error))


def _read_refusal(body: bytes) -> str:
    try:
        error = msgspec.json.decode(body, type=_Refusal).error
    except (msgspec.DecodeError, UnicodeError):
        return ""
    return (error if isinstance(error, str) else error.message)[:200]


async def open_upstream(http: HttpClient, choice: UpstreamChoice, tokenizer: Tokenizer) -> Upstream:
    """Ask a server what it is and hold it to what is asked of it.

    Raises:
        ConfigError: the operator's to mend: wrong URL, key, model, tokenizer or level; says how.
        UnavailableUpstream: it cannot be reached.
    """
    try:
        async with asyncio.timeout(OPENING_S):
            return await _open(http, choice, tokenizer)
    except TimeoutError as error:
        raise UnavailableUpstream(f"{choice.base} did not answer within {OPENING_S:g} s") from error
    except UnavailablePeer as error:
        raise UnavailableUpstream(f"--upstream: {error}") from error
    except (RefusedByPeer, InvalidResponse) as error:
        raise ConfigError(
            f"--upstream {choice.base} is no server of a known kind, or wants another key: {error}"
        ) from error


async def _open(http: HttpClient, choice: UpstreamChoice, tokenizer: Tokenizer) -> Upstream:
    listed = (await http.get_json(f"{choice.base}/v1/models", _Models, choice.headers)).data
    model = _choose_model(listed, choice)
    dialect = choice.dialect or OWNERS.get(model.owned_by)
    if dialect is None:
        raise ConfigError(
            f"--upstream-dialect is missing: {choice.base} does not say what it is (owned_by {model.owned_by[:40]!r}); "
            f"known: {', '.join(Dialect)}"
        )
    version, context_tokens = "", model.max_model_len
    if dialect is Dialect.LLAMA_SERVER:
        props = await http.get_json(f"{choice.base}/props", _Props, choice.headers)
        version, context_tokens = props.build_info, props.default_generation_settings.n_ctx or None
        if model.meta is not None and model.meta.n_vocab not in (0, tokenizer.vocabulary_size):
            raise ConfigError(
                f"--upstream serves a model of {model.meta.n_vocab} token ids, the record's has "
                f"{tokenizer.vocabulary_size}"
            )
    elif dialect is Dialect.VLLM:
        version = (await http.get_json(f"{choice.base}/version", _Version, choice.headers)).version
    if dialect in (Dialect.LLAMA_SERVER, Dialect.VLLM):
        await _check_tokenizer(http, choice, dialect, model.id, tokenizer)
    level = await _choose_level(http, choice, dialect, model.id)
    return Upstream(
        http,
        choice,
        tokenizer,
        model=model.id,
        dialect=dialect,
        level=level,
        version=version[:64],
        context_tokens=context_tokens,
    )


def _choose_model(listed: list[_Model], choice: UpstreamChoice) -> _Model:
    names = [model.id for model in listed]
    if choice.model:
        found = next((model for model in listed if model.id == choice.model), None)
        if found is None:
            raise ConfigError(
                f"--upstream-model {choice.model!r} is not served there; served: {', '.join(names)[:400]}"
            )
        return found
    if len(listed) != 1:
        raise ConfigError(f"--upstream-model is missing; served there: {', '.join(names)[:400] or 'nothing'}")
    return listed[0]


async def _check_tokenizer(
    http: HttpClient, choice: UpstreamChoice, dialect: Dialect, model: str, tokenizer: Tokenizer
) -> None:
    """The server cuts text into the record's ids: other ids would be another model's."""
    if dialect is Dialect.VLLM:
        asked: dict[str, object] = {"model": model, "prompt": PROBE_TEXT, "add_special_tokens": False}
    else:
        asked = {"content": PROBE_TEXT, "add_special": False}
    found = (await http.post_json(f"{choice.base}/tokenize", asked, _Tokens, choice.headers)).tokens
    wanted = tokenizer.encode_plain(PROBE_TEXT)
    if tuple(found) != wanted:
        raise ConfigError(
            f"--upstream reads {json.dumps(PROBE_TEXT)} as {found[:8]}…, the record's tokenizer as "
            f"{list(wanted[:8])}…: it serves another model"
        )


async def _choose_level(http: HttpClient, choice: UpstreamChoice, dialect: Dialect, model: str) -> Level:
    """The level asked for, or the highest that the server can keep."""
    highest = LEVEL_MAX[dialect]
    if choice.level is not None and choice.level > highest:
        raise ConfigError(
            f"--level {int(choice.level)}: answers of a {dialect} server promise at most level {int(highest)}"
        )
    if highest < Level.SEEDED or (choice.level is not None and choice.level < Level.SEEDED):
        return highest if choice.level is None else choice.level
    if await _has_processor(http, choice, model):
        return Level.SEEDED
    if choice.level is not None:
        raise ConfigError(
            "--level 2 needs our logits processor in the server, which does not answer; start it with "
            "`vllm serve MODEL --logits-processors deaios_vllm:SeededSampling`"
        )
    return Level.GREEDY


async def _has_processor(http: HttpClient, choice: UpstreamChoice, model: str) -> bool:
    """Does the server refuse a seed that only our processor reads? Without it, unknown arguments change nothing."""
    asked = {"model": model, "prompt": [0], "max_tokens": 1, "temperature": 0, "vllm_xargs": {XARG_SEED: "no seed"}}
    try:
        await http.post_json(f"{choice.base}/v1/completions", asked, msgspec.Raw, choice.headers)
    except RefusedByPeer as error:
        return XARG_SEED in _read_refusal(error.body)
    except Invalid:
        return False
    return False
