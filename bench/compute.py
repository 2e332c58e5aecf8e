"""The compute rows: what a check costs beside the generation, what verifiability costs the provider, and batching.

The peer of batching is llama.cpp's own HTTP server, which the wheel carries as `xllamacpp.Server`: same build, file,
threads, streams and context. It answers over HTTP and ours in process, a difference of a few milliseconds in seconds.
"""

import asyncio
import itertools
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from bench.caller import Caller
from bench.processes import serving
from bench.rows import Row, Run, compare, cpu_seconds
from deaios.compute.engine import Engine, Step
from deaios.compute.engines import open_engine
from deaios.compute.expansion import expand_to_f16
from deaios.compute.generation import Generation
from deaios.compute.records import DEFAULT_THRESHOLDS
from deaios.compute.sampling import sample
from deaios.compute.service import EngineService
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.compute.verification import verify_output
from deaios.ledger.structs import FinishReason, Params
from deaios.node.folder import model_cache
from deaios.node.model_package import fetch_default_model

VERIFY, OVERHEAD, BATCHED, CACHED = (
    "compute.verify_over_generate",
    "compute.provider_overhead",
    "compute.batched_tokens_per_s",
    "compute.prefix_cache_ttft",
)
TOKENS = 128
"""As many as an audit of the detection row reads."""
BATCH_TOKENS = 64
STREAMS = 8
CONTEXT_TOKENS = 1024
CACHE_BYTES = 64 << 20
SECOND_QUESTION = "And what does the keeper do when a storm comes up at night?"
SEED = bytes(range(32))
QUESTION = [{"role": "user", "content": "Describe a day in the life of a lighthouse keeper."}]
PARAMS = Params(800, 0, 1000, TOKENS, (), (), bytes(32))
BATCH_PARAMS = Params(800, 0, 1000, BATCH_TOKENS, (), (), bytes(32))


def measure(run: Run) -> Iterator[Row]:
    if not run.wants(VERIFY, OVERHEAD, BATCHED, CACHED, "compute.sample_64"):
        return
    model = _Model.open()
    with ExitStack() as stack:
        engines = {
            kind: stack.enter_context(
                closing(open_engine(kind, model.served, threads=1, context_tokens=CONTEXT_TOKENS, sequences_max=1))
            )
            for kind in ("llama", "numpy")
        }
        yield from _measure_alone(run, model, engines)
    if run.wants(BATCHED):
        yield asyncio.run(_measure_batch(run, model))
    if run.wants(CACHED):
        yield asyncio.run(_measure_prefixes(run, model))


@dataclass(frozen=True)
class _Model:
    served: Path
    tokenizer: Tokenizer
    prompt: tuple[int, ...]

    @classmethod
    def open(cls) -> "_Model":
        cache = model_cache()
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / "tests.lock"):  # the tests keep the same expansion there
            source = fetch_default_model(cache)
            served = cache / "SmolLM2-135M-Instruct.F16.gguf"
            if not served.exists():
                expand_to_f16(source, served)
        tokenizer = Tokenizer.from_gguf(source)
        return cls(served, tokenizer, ChatTemplate.from_gguf(source).render_ids(QUESTION, tokenizer))


@dataclass
class _Provider:
    """One answer made token by token, with sampling or with none."""

    model: _Model
    engine: Engine
    ids: tuple[int, ...] = ()
    first_row: NDArray[np.float32] | None = None

    def generate(self) -> None:
        prompt = self.model.prompt
        generation = Generation(len(prompt), PARAMS, SEED, self.model.tokenizer)
        (logits,) = self.engine.decode([Step(0, 0, prompt, 1)])
        self.first_row = logits[-1].copy()
        while True:
            sampled = generation.offer(logits[-1])
            if sampled.finish is not None:
                break
            (logits,) = self.engine.decode([Step(0, generation.position - 1, (sampled.token,), 1)])
        self.engine.forget(0)
        self.ids = generation.output_ids

    def repeat_bare(self) -> None:
        prompt = self.model.prompt
        self.engine.decode([Step(0, 0, prompt, 1)])
        for place, token in enumerate(self.ids[:-1]):
            self.engine.decode([Step(0, len(prompt) + place, (token,), 1)])
        self.engine.forget(0)

    def build_check(self, judge: Engine) -> Callable[[], None]:
        def check() -> None:
            reason = FinishReason.LENGTH if len(self.ids) == TOKENS else FinishReason.STOP_TOKEN
            given = (self.model.prompt, self.ids, PARAMS, SEED, reason, 0, DEFAULT_THRESHOLDS, self.model.tokenizer)
            report = verify_output(judge, *given)
            assert report.ok, report.violations

        return check


def _measure_alone(run: Run, model: _Model, engines: dict[str, Engine]) -> Iterator[Row]:
    provider = _Provider(model, engines["llama"])
    provider.generate()
    note = f"{len(provider.ids)} tokens, one thread"
    if run.wants(VERIFY):
        works = {f"by {kind}": cpu_seconds(provider.build_check(engine)) for kind, engine in engines.items()}
        found = asyncio.run(run.interleave(VERIFY, {**works, "generation": cpu_seconds(provider.generate)}, 5))
        peer = "generation by llama"
        rows = [compare(f"{VERIFY}.{kind}", "CPU-s", found[f"by {kind}"], peer, found["generation"], note)
                for kind in engines]  # fmt: skip
        best = min(rows, key=lambda row: row.value or 0.0)
        yield compare(
            VERIFY,
            "CPU-s",
            found[f"by {best.name.rsplit('.', 1)[1]}"],
            peer,
            found["generation"],
            f"{note}; {best.name}",
        )
        yield from rows
    if run.wants(OVERHEAD):
        both = {"ours": cpu_seconds(provider.generate), "bare": cpu_seconds(provider.repeat_bare)}
        found = asyncio.run(run.interleave(OVERHEAD, both, 5))
        yield compare(OVERHEAD, "CPU-s", found["ours"], "the same tokens, no sampling", found["bare"], note)
    if run.wants("compute.sample_64"):
        logits = provider.first_row
        assert logits is not None
        draws = {
            "ours": cpu_seconds(lambda: [sample(logits, PARAMS, SEED, place) for place in range(64)]),
            "argmax": cpu_seconds(lambda: [logits.argmax() for _ in range(64)]),
        }
        found = asyncio.run(run.interleave("compute.sample_64", draws, 9))
        yield compare("compute.sample_64", "CPU-s", found["ours"], "argmax", found["argmax"])


async def _measure_batch(run: Run, model: _Model) -> Row:
    """Tokens a second of eight streams that start together."""
    threads = len(os.sched_getaffinity(0))
    with serving("llama", model.served, str(threads), str(STREAMS), str(CONTEXT_TOKENS)) as server:
        callers = [_build_caller(server.url, model.prompt, number) for number in range(STREAMS)]

        async def peer() -> float:
            start = time.perf_counter()
            answers = await asyncio.gather(*(caller.call() for caller in callers))
            counts = [json.loads(body)["tokens_predicted"] for _, body in answers]
            return sum(counts) / (time.perf_counter() - start)

        service = EngineService(
            open_engine("llama", model.served, threads=threads, context_tokens=CONTEXT_TOKENS, sequences_max=STREAMS)
        )

        async def stream(number: int) -> int:
            seed = bytes([number]) * 32
            return len([item async for item in service.generate(model.prompt, BATCH_PARAMS, seed, model.tokenizer)])

        async def ours() -> float:
            start = time.perf_counter()
            counts = await asyncio.gather(*(stream(number) for number in range(STREAMS)))
            return sum(counts) / (time.perf_counter() - start)

        try:
            found = await run.interleave(BATCHED, {"ours": ours, "llama.cpp's server": peer}, 5)
        finally:
            await service.close()
    note = f"{STREAMS} streams of {BATCH_TOKENS} tokens, {threads} threads; the peer is xllamacpp.Server, over HTTP"
    theirs = found["llama.cpp's server"]
    return compare(BATCHED, "tokens/s", found["ours"], "llama.cpp's own server", theirs, note)


async def _measure_prefixes(run: Run, model: _Model) -> Row:
    """Until the first token of a second turn, by the payer of the first turn and by one that is new each time."""
    engine = open_engine("llama", model.served, threads=1, context_tokens=CONTEXT_TOKENS, sequences_max=2)
    service = EngineService(engine, cache_bytes_max=CACHE_BYTES)
    payers = itertools.count(100)

    async def answer(prompt: tuple[int, ...], tokens: int, owner: bytes) -> tuple[int, ...]:
        params = Params(800, 0, 1000, tokens, (), (), bytes(32))
        stream = service.generate(prompt, params, SEED, model.tokenizer, owner=owner)
        return tuple([item.token async for item in stream])

    first = await answer(model.prompt, TOKENS, b"payer")

    def first_token(build_owner: Callable[[], bytes]) -> Callable[[], Awaitable[float]]:
        async def work() -> float:
            owner = build_owner()
            # Another question each time, so that only the first turn was read before.
            question = model.tokenizer.encode_plain(f"\n{next(payers)}. {SECOND_QUESTION}")
            start = time.process_time()
            await answer((*model.prompt, *first, *question), 1, owner)
            return time.process_time() - start

        return work

    works = {"ours": first_token(lambda: b"payer"), "read anew": first_token(lambda: next(payers).to_bytes(8))}
    try:
        found = await run.interleave(CACHED, works, 9)
    finally:
        await service.close()
    note = f"a second turn, {len(model.prompt) + len(first)} ids of its prompt are the first one; one thread"
    return compare(CACHED, "CPU-s", found["ours"], "the same prompt of a new payer", found["read anew"], note)


def _build_caller(url: str, prompt: tuple[int, ...], number: int) -> Caller:
    """The same work for llama.cpp's server: ids in, temperature alone, nothing kept from the last round."""
    body = {
        "prompt": prompt,
        "n_predict": BATCH_TOKENS,
        "temperature": PARAMS.temperature_milli / 1000,
        "samplers": ["temperature"],
        "seed": number,
        "cache_prompt": False,
        "ignore_eos": True,
    }
    return Caller(f"{url}/completions", json.dumps(body).encode(), {"Connection": "close"})  # it ends idle ones
