"""Other people's servers as engines: what they are asked, what their answers become, and what is refused."""

import asyncio
import importlib.util
import sys
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from deaios.compute.engines.upstream.client import UpstreamChoice, open_upstream
from deaios.compute.engines.upstream.dialects import Dialect, RefusedUpstream, UnavailableUpstream
from deaios.compute.engines.upstream.prompts import RefusedPrompt, read_messages, render_text
from deaios.compute.records import DEFAULT_THRESHOLDS
from deaios.compute.verification import verify_output
from deaios.ledger.structs import FinishReason, Level, Params
from deaios.primitives.errors import ConfigError, Unavailable
from deaios.primitives.hashing import ZERO32
from deaios.runtime.client import HttpClient

SEED = bytes(range(32))


def _load_servers():
    path = Path(__file__).parent / "upstream_servers.py"
    spec = importlib.util.spec_from_file_location("upstream_servers", path)
    module = sys.modules["upstream_servers"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


servers = _load_servers()


def params(max_tokens=64, temperature_milli=0, **changes):
    values = {"top_k": 0, "top_p_milli": 1000, "stop_ids": (), "stop_strings": (), "mask_hash": ZERO32} | changes
    return Params(temperature_milli=temperature_milli, max_tokens=max_tokens, **values)


@pytest.fixture
def conversation(tokenizer):
    return chatml(tokenizer, ("system", "Be short."), ("user", "Who is there, <|im_end|>?"))


def chatml(tokenizer, *turns):
    start, end = tokenizer.special_ids["<|im_start|>"], tokenizer.special_ids["<|im_end|>"]
    ids = []
    for role, content in turns:
        ids += [start, *tokenizer.encode_plain(f"{role}\n{content}"), end, *tokenizer.encode_plain("\n")]
    return (*ids, start, *tokenizer.encode_plain("assistant\n"))


@pytest.fixture
def plain(tokenizer):
    return chatml(tokenizer, ("user", "Who is there?"))


@pytest.fixture
def answer(tokenizer):
    return (*tokenizer.encode_plain(servers.WORDS), tokenizer.special_ids["<|im_end|>"])


@asynccontextmanager
async def opened(server, tokenizer, **changes):
    async with server.serve() as url, HttpClient() as http:
        yield await open_upstream(http, UpstreamChoice(url, **changes), tokenizer)


async def collect(upstream, prompt, wanted, logprobs=None):
    async with aclosing(upstream.generate(prompt, wanted, SEED, logprobs)) as stream:
        return [sampled async for sampled in stream]


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
async def test_ids_of_a_server_are_the_answer(kind, tokenizer, plain, answer):
    server = servers.FakeServer(kind, tokenizer, answer)
    async with opened(server, tokenizer) as upstream:
        assert (upstream.dialect, upstream.level) == (Dialect(kind), Level.GREEDY)
        sampled = await collect(upstream, plain, params())
    assert tuple(item.token for item in sampled) == answer
    assert sampled[-1].finish is FinishReason.STOP_TOKEN
    assert "".join(item.text_delta for item in sampled) == servers.WORDS
    order = server.orders[-1]
    assert list(plain) in (order.get("prompt"), order.get("input_ids"))


@pytest.mark.parametrize("kind", ["ollama", "completions", "chat"])
async def test_text_of_a_server_becomes_ids_of_the_record_and_promises_nothing(kind, tokenizer, plain, answer):
    server = servers.FakeServer(kind, tokenizer, answer)
    async with opened(server, tokenizer, dialect=Dialect(kind)) as upstream:
        assert upstream.level is Level.SIGNED
        sampled = await collect(upstream, plain, params(temperature_milli=700))
    assert tuple(item.token for item in sampled) == answer, "the ids do not depend on how the text arrived"
    assert sampled[-1].finish is FinishReason.STOP_TOKEN
    order = server.orders[-1]
    if kind == "chat":
        assert order["messages"] == [{"role": "user", "content": "Who is there?"}]
    else:
        assert order["prompt"] == "<|im_start|>user\nWho is there?<|im_end|>\n<|im_start|>assistant\n"
    assert (order["options"] if kind == "ollama" else order)["temperature"] == 0.7


async def test_every_sampling_parameter_is_said(tokenizer, plain, answer):
    server = servers.FakeServer("vllm", tokenizer, answer)
    async with opened(server, tokenizer, level=Level.SIGNED) as upstream:
        await collect(upstream, plain, params(31, 1250, top_k=40, top_p_milli=905))
    order = server.orders[-1]
    del order["prompt"]
    assert order == {
        "model": "served", "stream": True, "max_tokens": 31, "return_token_ids": True, "add_special_tokens": False,
        "skip_special_tokens": False, "presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1.0,
        "min_p": 0.0, "temperature": 1.25, "top_p": 0.905, "top_k": 40, "seed": 0x00010203 >> 1,
    }  # fmt: skip


async def test_the_records_rules_end_the_answer(tokenizer, plain, answer):
    stops = {
        "length": (params(3), FinishReason.LENGTH),
        "string": (params(stop_strings=("says", "never")), FinishReason.STOP_STRING),
        "id": (params(stop_ids=(answer[2],)), FinishReason.STOP_TOKEN),
    }
    for kind in ("vllm", "completions"):
        server = servers.FakeServer(kind, tokenizer, answer)
        async with opened(server, tokenizer, dialect=Dialect(kind)) as upstream:
            for wanted, reason in stops.values():
                sampled = await collect(upstream, plain, wanted)
                assert sampled[-1].finish is reason
                assert tuple(item.token for item in sampled) == answer[: len(sampled)]
                assert len(sampled) < len(answer)


async def test_a_reader_that_leaves_closes_the_connection(tokenizer, plain, answer):
    server = servers.FakeServer("vllm", tokenizer, answer)
    server.gate.clear()
    async with opened(server, tokenizer) as upstream:
        async with aclosing(upstream.generate(plain, params(), SEED)) as stream:
            assert (await anext(stream)).token == answer[0]
        async with asyncio.timeout(10):
            await server.gone.wait()


@pytest.mark.parametrize(
    ("refusal", "error", "says"),
    [
        ((429, {"error": {"message": "slow down"}}), RefusedUpstream, "busy: slow down"),
        ((503, {"error": {"message": "loading"}}), RefusedUpstream, "cannot serve now: 503"),
        ((400, {"error": {"message": "context is 8"}}), RefusedUpstream, "declines: 400 context is 8"),
        ((401, {"error": "no key"}), RefusedUpstream, "declines: 401 no key"),
        ((302, {}), UnavailableUpstream, "redirects are not followed"),
    ],
)
async def test_a_server_that_declines_is_a_refusal(tokenizer, plain, answer, refusal, error, says):
    server = servers.FakeServer("vllm", tokenizer, answer)
    async with opened(server, tokenizer) as upstream:
        server.refusal = refusal
        with pytest.raises(error, match=says):
            await collect(upstream, plain, params())


@pytest.mark.parametrize("fault", ["breaks", "silent", "ends early", "no ids", "foreign id", "says error", "filtered"])
async def test_a_server_that_breaks_off_fails_the_answer(tokenizer, plain, answer, fault):
    server = servers.FakeServer("vllm", tokenizer, answer)
    async with opened(server, tokenizer, idle_s=0.5) as upstream:
        match fault:
            case "breaks":
                server.breaks_after = 1
            case "silent":
                server.gate.clear()
            case "ends early":
                server.ids = list(answer[:-1])
            case "no ids":
                server.has_token_ids = False
            case "foreign id":
                server.ids = [*answer[:4], tokenizer.vocabulary_size]
            case "says error":
                server._documents = lambda body: [b'data: {"error": {"message": "out of memory"}}\n\n']
            case "filtered":
                server.end = "content_filter"
        with pytest.raises(UnavailableUpstream):
            await collect(upstream, plain, params())


async def test_a_text_server_that_stops_by_its_own_limit_is_not_taken_at_its_word(tokenizer, plain, answer):
    server = servers.FakeServer("completions", tokenizer, answer, end="length")
    async with opened(server, tokenizer, dialect=Dialect.COMPLETIONS) as upstream:
        with pytest.raises(UnavailableUpstream, match="where the record's rules do not"):
            await collect(upstream, plain, params())


@pytest.mark.parametrize(
    ("kind", "wanted", "logprobs", "says"),
    [
        ("vllm", params(temperature_milli=1), None, "level 1 are for temperature 0"),
        ("vllm", params(), 3, "log probabilities"),
        ("vllm", params(mask_hash=b"\1" * 32), None, "mask"),
        ("chat", params(top_k=5), None, "top_k"),
    ],
)
async def test_what_cannot_be_kept_is_refused_before_anything_is_sent(
    tokenizer, plain, answer, kind, wanted, logprobs, says
):
    server = servers.FakeServer(kind, tokenizer, answer)
    async with opened(server, tokenizer, dialect=Dialect(kind)) as upstream:
        asked = len(server.orders)
        with pytest.raises(Exception, match=says):
            await collect(upstream, plain, wanted, logprobs)
        assert len(server.orders) == asked


async def test_level_two_needs_our_processor_in_the_server(tokenizer, plain, answer):
    server = servers.FakeServer("vllm", tokenizer, answer)
    with pytest.raises(ConfigError, match="--logits-processors"):
        async with opened(server, tokenizer, level=Level.SEEDED):
            pass
    server.has_processor = True
    async with opened(server, tokenizer) as upstream:
        assert upstream.level is Level.SEEDED
        await collect(upstream, plain, params(64, 800, top_k=9, top_p_milli=950))
    order = server.orders[-1]
    assert order["temperature"] == 0
    assert order["vllm_xargs"] == {
        "deaios_seed": SEED[:16].hex(), "deaios_temperature_milli": 800, "deaios_top_k": 9, "deaios_top_p_milli": 950,
    }  # fmt: skip


async def test_the_operator_is_told_what_to_mend(tokenizer, answer):
    async def refuse(server, says, **changes):
        with pytest.raises(ConfigError, match=says):
            async with opened(server, tokenizer, **changes):
                pass

    await refuse(servers.FakeServer("vllm", tokenizer, answer, models=("a", "b")), "--upstream-model is missing")
    await refuse(servers.FakeServer("vllm", tokenizer, answer), "'c' is not served", model="c")
    await refuse(servers.FakeServer("completions", tokenizer, answer, owner="me"), "--upstream-dialect is missing")
    await refuse(servers.FakeServer("sglang", tokenizer, answer), "at most level 1", level=Level.SEEDED)
    await refuse(servers.FakeServer("ollama", tokenizer, answer), "at most level 0", level=Level.GREEDY)
    other = servers.FakeServer("vllm", tokenizer, answer)
    other.cuts_text = lambda text: [1, 2, 3]
    await refuse(other, "serves another model")
    async with HttpClient() as http:
        with pytest.raises(Unavailable):
            await open_upstream(http, UpstreamChoice("http://127.0.0.1:9"), tokenizer)


async def test_the_key_goes_into_one_header_only(tokenizer, plain, answer):
    server = servers.FakeServer("chat", tokenizer, answer)
    async with opened(server, tokenizer, dialect=Dialect.CHAT, api_key="sk-secret") as upstream:
        await collect(upstream, plain, params())
        assert server.headers["Authorization"] == "Bearer sk-secret"
        server.refusal = (401, {"error": {"message": "bad key"}})
        with pytest.raises(RefusedUpstream) as refused:
            await collect(upstream, plain, params())
    assert "sk-secret" not in str(refused.value) + repr(upstream._choice) + repr(upstream.profile)


def test_prompts_are_said_exactly_or_not_at_all(tokenizer, plain, conversation):
    assert render_text(plain, tokenizer) == "<|im_start|>user\nWho is there?<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(RefusedPrompt, match="other token ids"):
        render_text(conversation, tokenizer)  # a user's text looks like a special token
    assert read_messages(conversation, tokenizer) == (("system", "Be short."), ("user", "Who is there, <|im_end|>?"))
    with pytest.raises(RefusedPrompt, match="within a character"):
        render_text(tokenizer.encode_plain("🦄")[:-1], tokenizer)
    start = tokenizer.special_ids["<|im_start|>"]
    for ids in (
        (),
        tokenizer.encode_plain("Once upon"),
        plain[:-1],
        (*plain, *tokenizer.encode_plain("Well")),
        plain[5:],
        (start, *tokenizer.encode_plain("pope\nhi"), *plain),
        (start, *tokenizer.encode_plain("assistant\n")),
    ):
        with pytest.raises(RefusedPrompt):
            read_messages(ids, tokenizer)


@pytest.fixture(scope="module")
def real_server(model_files):
    server = servers.RealServer(model_files.served)
    yield server
    server.close()


async def test_llama_server_sells_level_one_answers_that_verify(real_server, tokenizer, numpy_engine):
    """The prompt makes the model say a unicorn: llama-server's own stream leaves ids out there, and the end id."""
    prompt = chatml(tokenizer, ("user", "Repeat this exactly: 🦄é"))
    async with HttpClient() as http:
        upstream = await open_upstream(http, UpstreamChoice(real_server.url), tokenizer)
        assert (upstream.dialect, upstream.level, upstream.context_tokens) == (Dialect.LLAMA_SERVER, Level.GREEDY, 256)
        wanted = params(40)
        sampled = await collect(upstream, prompt, wanted)
        with pytest.raises(RefusedUpstream, match="400"):
            await collect(upstream, prompt * 30, wanted)
    ids = [item.token for item in sampled]
    assert "🦄" in "".join(item.text_delta for item in sampled)
    last = sampled[-1]
    report = verify_output(
        numpy_engine, prompt, ids, wanted, SEED, last.finish, last.stop_index, DEFAULT_THRESHOLDS, tokenizer
    )
    assert report.ok
    assert report.tokens_checked == len(ids)


async def test_llama_server_draws_at_level_zero(real_server, tokenizer, plain):
    async with HttpClient() as http:
        upstream = await open_upstream(http, UpstreamChoice(real_server.url, level=Level.SIGNED), tokenizer)
        sampled = await collect(upstream, plain, params(14, 1000, top_k=50, top_p_milli=950))
    assert len(sampled) <= 14
    assert sampled[-1].finish in (FinishReason.LENGTH, FinishReason.STOP_TOKEN)
