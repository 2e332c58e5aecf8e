"""Many callers on one engine: batching, checks in between, cancellation, failure and the end."""

import asyncio
import threading
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from deaios.compute.engine import EngineProfile, InvalidStep, Snapshot, UnavailableEngine, validate_steps
from deaios.compute.engines.llama import LlamaEngine
from deaios.compute.generation import InvalidPrefix
from deaios.compute.records import DEFAULT_THRESHOLDS
from deaios.compute.sampling import InvalidLogits
from deaios.compute.service import OVERTAKEN_MAX, EngineService, Load, RefusedLength
from deaios.ledger.structs import FinishReason, Params
from deaios.primitives.hashing import ZERO32
from deaios.runtime.errors import RefusedBusy

SEED = bytes(range(32))
VOCABULARY = 49152


def params(max_tokens, temperature_milli=800):
    return Params(temperature_milli, 0, 1000, max_tokens, (), (), ZERO32)


class CountingEngine:
    """Says, greedily, the position of the id that was read plus 100; decodes only while its gate is open."""

    profile = EngineProfile("counting", "1", "F")
    vocabulary_size = VOCABULARY

    def __init__(self, sequences_max=2, context_tokens=1000, tokens_max=None):
        self.sequences_max = sequences_max
        self.context_tokens = context_tokens
        self.tokens_max = tokens_max or sequences_max * context_tokens
        self.held = [0] * sequences_max
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()
        self.closed = False
        self.failure = None
        self.spoiled = None

    def decode(self, steps):
        self.gate.wait(timeout=30)
        if self.failure is not None:
            raise self.failure
        validate_steps(self, self.held, steps)
        self.batches.append([(step.sequence, step.position, len(step.ids)) for step in steps])
        answers = []
        for step in steps:
            self.held[step.sequence] += len(step.ids)
            rows = np.zeros((step.outputs, VOCABULARY), np.float32)
            for row in range(step.outputs):
                rows[row, 100 + self.held[step.sequence] - step.outputs + row] = 10.0
            if self.spoiled is not None and self.spoiled in step.ids:
                rows[:] = np.nan
            answers.append(rows)
        return answers

    def forget(self, sequence):
        self.held[sequence] = 0

    def close(self):
        self.closed = True


class SavingCountingEngine(CountingEngine):
    """Can be copied from, too; a token takes a byte."""

    def save(self, sequence):
        return Snapshot(self.held[sequence], self.held[sequence], None)

    def restore(self, sequence, snapshot, tokens):
        assert self.held[sequence] == 0
        self.held[sequence] = tokens
        return True


class Stopwatch:
    """A clock that every batch moves by a second an id; read it as often as you like."""

    def __init__(self, engine):
        self._engine = engine

    def __call__(self):
        return float(sum(size for batch in self._engine.batches for _, _, size in batch))


@pytest.fixture
async def counting():
    engine = CountingEngine()
    service = EngineService(engine)
    yield engine, service
    engine.gate.set()
    await service.close()


GREEDY = 0


async def collect(stream):
    return [sampled.token async for sampled in stream]


async def until(condition):
    """Let other tasks and threads run until the condition holds; the test's own timeout is the bound."""
    while not condition():
        await asyncio.sleep(0)


async def test_eight_answers_at_once_on_the_real_model_all_verify(model_files, tokenizer):
    service = EngineService(LlamaEngine(model_files.served, threads=2, context_tokens=256, sequences_max=4))
    texts = ["The sea", "Two plus two is", "My cat likes", "In 1914 the", "Bread needs", "Why", "A poem:", "1, 2, 3,"]
    prompts = [tokenizer.encode_plain(text) for text in texts]
    asked = params(10)

    async def answer(prompt):
        stream = service.generate(prompt, asked, SEED, tokenizer)
        sampled = [item async for item in stream]
        assert all(item.finish is None for item in sampled[:-1])
        assert sampled[-1].finish is not None
        ids = [item.token for item in sampled]
        report = await service.verify(
            prompt, ids, asked, SEED, sampled[-1].finish, sampled[-1].stop_index, DEFAULT_THRESHOLDS, tokenizer
        )
        return ids, report

    found = await asyncio.gather(*(answer(prompt) for prompt in prompts))
    for ids, report in found:
        assert report.ok
        assert report.tokens_checked == len(ids)
    assert service.get_load() == Load(0, 0, sum(map(len, prompts)), sum(len(ids) for ids, _ in found))
    # alone, the same prompt replays exactly; the wrong seed does not
    ids = await collect(service.generate(prompts[0], asked, SEED, tokenizer))
    assert (await service.replay(prompts[0], ids, asked, SEED)).equal
    assert not (await service.replay(prompts[0], ids, asked, bytes(32))).equal
    changed = [*ids[:4], (ids[4] + 1) % VOCABULARY, *ids[5:]]
    assert (await service.replay(prompts[0], changed, asked, SEED)).first_difference == 4
    await service.close()


async def test_answers_share_batches_and_sequences_are_given_back(counting, tokenizer):
    engine, service = counting
    engine.gate.clear()
    streams = [service.generate((5,) * size, params(3, GREEDY), SEED, tokenizer) for size in (4, 7, 2)]
    engine.gate.set()
    assert await asyncio.gather(*map(collect, streams)) == [[103, 104, 105], [106, 107, 108], [101, 102, 103]]
    assert any(len(batch) == 2 for batch in engine.batches)
    assert engine.held == [0, 0]
    assert service.get_load() == Load(0, 0, 13, 9)


async def test_long_prompts_are_read_in_pieces_while_answers_go_on(counting, tokenizer):
    engine, service = counting
    engine.gate.clear()
    short = service.generate((5,), params(8, GREEDY), SEED, tokenizer)
    long = service.generate((5,) * 700, params(2, GREEDY), SEED, tokenizer)
    engine.gate.set()
    assert (await collect(short), await collect(long)) == (list(range(100, 108)), [799, 800])
    pieces = [size for batch in engine.batches for sequence, position, size in batch if size > 1]
    assert pieces == [233, 233, 234]
    with_pieces = [batch for batch in engine.batches if any(size > 1 for _, _, size in batch)]
    assert any(len(batch) == 2 for batch in with_pieces)


async def test_closing_a_stream_frees_its_sequence_for_the_next(counting, tokenizer):
    engine, service = counting
    first = service.generate((5,), params(900, GREEDY), SEED, tokenizer)
    second = service.generate((5,), params(900, GREEDY), SEED, tokenizer)
    assert (await anext(first)).token == 100
    third = service.generate((5, 5), params(2, GREEDY), SEED, tokenizer)
    await first.aclose()
    assert await collect(third) == [101, 102]
    with pytest.raises(StopAsyncIteration):
        await anext(first)
    await second.aclose()
    await first.aclose()
    assert service.get_load().running == 0
    assert engine.held == [0, 0]


async def test_a_cancelled_task_frees_its_sequence(counting, tokenizer):
    engine, service = counting
    engine.gate.clear()
    task = asyncio.create_task(collect(service.generate((5,), params(900, GREEDY), SEED, tokenizer)))
    await until(lambda: service.get_load().running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    engine.gate.set()
    await until(lambda: service.get_load().running == 0)
    assert engine.held == [0, 0]


async def test_a_waiting_job_is_dropped_without_ever_running(counting, tokenizer):
    engine, service = counting
    engine.gate.clear()
    running = [service.generate((5,), params(2, GREEDY), SEED, tokenizer) for _ in range(2)]
    await until(lambda: service.get_load().running == 2)
    waiting = service.generate((5,) * 77, params(2, GREEDY), SEED, tokenizer)
    await waiting.aclose()
    engine.gate.set()
    for stream in running:
        await collect(stream)
    assert not any(size == 77 for batch in engine.batches for _, _, size in batch)


async def test_a_full_queue_is_refused_and_opens_again(tokenizer):
    engine = CountingEngine(sequences_max=1)
    service = EngineService(engine, waiting_max=2)
    engine.gate.clear()
    running = service.generate((5,), params(2, GREEDY), SEED, tokenizer)
    await until(lambda: service.get_load().running == 1)
    waiting = [service.generate((5,), params(2, GREEDY), SEED, tokenizer) for _ in range(2)]
    with pytest.raises(RefusedBusy, match="2 jobs wait, at most 2 may"):
        service.generate((5,), params(2, GREEDY), SEED, tokenizer)
    with pytest.raises(RefusedBusy):
        await service.replay((5,), (100,), params(1, GREEDY), SEED)
    engine.gate.set()
    for stream in (running, *waiting):
        assert await collect(stream) == [100, 101]
    assert await collect(service.generate((5,), params(2, GREEDY), SEED, tokenizer)) == [100, 101]
    await service.close()


async def test_promised_tokens_never_exceed_the_pool(tokenizer):
    engine = CountingEngine(sequences_max=4, context_tokens=100, tokens_max=120)
    service = EngineService(engine)
    streams = [service.generate((5,) * 40, params(20, GREEDY), SEED, tokenizer) for _ in range(4)]
    for stream in streams:
        assert len(await collect(stream)) == 20
    assert max(len(batch) for batch in engine.batches) == 2
    await service.close()


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "error", "message"),
    [
        ((), 5, InvalidStep, "at least one id"),
        ((VOCABULARY,), 5, InvalidStep, "ids below 49152"),
        ((-1,), 5, InvalidStep, "ids below 49152"),
        ((5,) * 996, 6, RefusedLength, "996 prompt ids and max_tokens 6 exceed the context of 1000"),
    ],
)
async def test_requests_that_cannot_run_are_refused_at_once(counting, tokenizer, prompt, max_tokens, error, message):
    _, service = counting
    with pytest.raises(error, match=message):
        service.generate(prompt, params(max_tokens, GREEDY), SEED, tokenizer)


async def test_an_answer_may_fill_the_context_exactly(counting, tokenizer):
    _, service = counting
    assert len(await collect(service.generate((5,) * 996, params(5, GREEDY), SEED, tokenizer))) == 5


async def test_a_check_lets_running_answers_have_their_turns(counting, tokenizer):
    engine, service = counting
    engine.gate.clear()
    stream = service.generate((5,), params(500, GREEDY), SEED, tokenizer)
    await until(lambda: service.get_load().running == 1)
    output = list(range(102, 402))
    check = asyncio.create_task(
        service.verify(
            (5, 5, 5), output, params(300, GREEDY), SEED, FinishReason.LENGTH, 0, DEFAULT_THRESHOLDS, tokenizer
        )
    )
    engine.gate.set()
    report = await check
    assert report.ok
    assert report.tokens_checked == 300
    assert len(await collect(stream)) == 500
    places = [place for place, batch in enumerate(engine.batches) if any(size > 1 for _, _, size in batch)]
    assert len(places) == 3
    assert all(later - earlier == 2 for earlier, later in pairwise(places))


async def test_replay_runs_alone_and_later_answers_wait(counting, tokenizer):
    engine, service = counting
    engine.gate.clear()
    before = service.generate((5,) * 10, params(5, GREEDY), SEED, tokenizer)
    await until(lambda: service.get_load().running == 1)
    replay = asyncio.create_task(service.replay((5,) * 20, list(range(119, 139)), params(20, GREEDY), SEED))
    await until(lambda: service.get_load().waiting == 1)
    after = service.generate((5,) * 30, params(5, GREEDY), SEED, tokenizer)
    engine.gate.set()
    assert (await replay).equal
    assert await collect(before) == list(range(109, 114))
    assert await collect(after) == list(range(129, 134))
    starts = {size: place for place, batch in enumerate(engine.batches) for _, _, size in batch if size > 1}
    assert starts == {10: 0, 20: 5, 30: 25}
    assert all(len(batch) == 1 for batch in engine.batches)


async def test_a_cancelled_check_stops_between_its_batches(counting):
    engine, service = counting
    engine.gate.clear()
    task = asyncio.create_task(service.replay((5,), list(range(100, 900)), params(900, GREEDY), SEED))
    await until(lambda: service.get_load().running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    engine.gate.set()
    await until(lambda: service.get_load().running == 0)
    assert len(engine.batches) <= 2


async def test_broken_logits_end_one_answer_and_no_other(counting, tokenizer):
    engine, service = counting
    engine.spoiled = 7
    broken = service.generate((5, 7), params(3, GREEDY), SEED, tokenizer)
    good = service.generate((5, 6), params(3, GREEDY), SEED, tokenizer)
    with pytest.raises(InvalidLogits):
        await collect(broken)
    assert await collect(good) == [101, 102, 103]
    assert engine.held == [0, 0]


@pytest.mark.parametrize("failure", [UnavailableEngine("llama.cpp failed with code -3"), ValueError("a fault of ours")])
async def test_a_failing_engine_is_told_to_everybody(tokenizer, failure):
    engine = CountingEngine(sequences_max=1)
    service = EngineService(engine)
    engine.gate.clear()
    streams = [service.generate((5,), params(3, GREEDY), SEED, tokenizer) for _ in range(2)]
    check = asyncio.create_task(service.replay((5,), (100,), params(1, GREEDY), SEED))
    await until(lambda: service.get_load().waiting == 2)
    engine.failure = failure
    engine.gate.set()
    for stream in streams:
        with pytest.raises(UnavailableEngine, match=str(failure)):
            await collect(stream)
    with pytest.raises(UnavailableEngine):
        await check
    with pytest.raises(UnavailableEngine, match=str(failure)):
        service.generate((5,), params(3, GREEDY), SEED, tokenizer)
    await service.close()
    assert engine.closed


@pytest.mark.parametrize("failure", [UnavailableEngine("llama.cpp failed with code -3"), ValueError("a fault of ours")])
async def test_a_failure_inside_a_check_is_told_to_everybody(tokenizer, failure):
    engine = CountingEngine()
    service = EngineService(engine)
    engine.gate.clear()
    check = asyncio.create_task(service.replay((5,), (100,), params(1, GREEDY), SEED))
    await until(lambda: service.get_load().running == 1)
    stream = service.generate((5,), params(3, GREEDY), SEED, tokenizer)
    engine.failure = failure
    engine.gate.set()
    with pytest.raises(UnavailableEngine, match=str(failure)):
        await check
    with pytest.raises(UnavailableEngine, match=str(failure)):
        await collect(stream)
    await service.close()
    assert engine.closed


async def test_drain_finishes_what_was_accepted_and_refuses_the_rest(counting, tokenizer):
    engine, service = counting
    engine.gate.clear()
    streams = [service.generate((5,), params(3, GREEDY), SEED, tokenizer) for _ in range(3)]
    drained = asyncio.create_task(service.drain())
    await asyncio.sleep(0)
    with pytest.raises(UnavailableEngine, match="shutting down"):
        service.generate((5,), params(3, GREEDY), SEED, tokenizer)
    assert not drained.done()
    engine.gate.set()
    await drained
    assert service.get_load() == Load(0, 0, 3, 9)
    for stream in streams:
        assert await collect(stream) == [100, 101, 102]


async def test_close_ends_every_job_and_leaves_no_thread(tokenizer):
    threads = set(threading.enumerate())
    engine = CountingEngine(sequences_max=1)
    service = EngineService(engine)
    engine.gate.clear()
    async with aclosing(service.generate((5,), params(900, GREEDY), SEED, tokenizer)) as running:
        waiting = service.generate((5,), params(900, GREEDY), SEED, tokenizer)
        check = asyncio.create_task(service.replay((5,), (100,), params(1, GREEDY), SEED))
        await until(lambda: service.get_load().waiting == 2)
        closing = asyncio.create_task(service.close())
        await asyncio.sleep(0)
        engine.gate.set()
        await closing
        with pytest.raises(UnavailableEngine, match="shutting down"):
            await collect(running)
        with pytest.raises(UnavailableEngine, match="shutting down"):
            await collect(waiting)
        with pytest.raises(UnavailableEngine, match="shutting down"):
            await check
    assert engine.closed
    assert not [thread for thread in set(threading.enumerate()) - threads if thread.name == "engine"]
    await service.close()
    await service.drain()
    with pytest.raises(UnavailableEngine, match="shutting down"):
        await service.replay((5,), (100,), params(1, GREEDY), SEED)


async def begin(service, tokenizer, prompt, asked, prefix, thresholds=DEFAULT_THRESHOLDS, logprobs=None):
    how = {"prefix_ids": prefix, "thresholds": thresholds}
    return [item async for item in service.generate(prompt, asked, SEED, tokenizer, logprobs, **how)]


async def test_an_answer_goes_on_after_any_prefix_with_the_real_model(model_files, tokenizer):
    """What one engine began another one ends, with the same ids, and the joined answer verifies; greedy and seeded."""
    first = EngineService(LlamaEngine(model_files.served, threads=2, context_tokens=256, sequences_max=2))
    second = EngineService(LlamaEngine(model_files.served, threads=1, context_tokens=256, sequences_max=4))
    prompt = tokenizer.encode_plain("In the beginning there was")
    try:
        for asked in (params(24), params(24, GREEDY)):
            whole = [item async for item in first.generate(prompt, asked, SEED, tokenizer)]
            ids = [item.token for item in whole]
            parts = (ids[:1], ids[:11], ids[:23], ids)
            joined = await asyncio.gather(*(begin(second, tokenizer, prompt, asked, part) for part in parts))
            assert all(item == whole for item in joined)
            end = whole[-1]
            report = await first.verify(
                prompt, ids, asked, SEED, end.finish, end.stop_index, DEFAULT_THRESHOLDS, tokenizer
            )
            assert report.ok
            wrong = [*ids[:7], (ids[7] + 1) % VOCABULARY, *ids[8:11]]
            with pytest.raises(InvalidPrefix, match="prefix violates at 7: margin") as found:
                await begin(second, tokenizer, prompt, asked, wrong)
            assert found.value.position == 7
        ranked = await begin(second, tokenizer, prompt, params(24, GREEDY), ids[:5], logprobs=2)
        assert [(len(item.logprobs), item.logprobs[0][0]) for item in ranked] == [(3, token) for token in ids]
    finally:
        await first.close()
        await second.close()


async def test_a_prefix_is_read_in_one_pass_and_gives_its_sequence_back(counting, tokenizer):
    engine, service = counting
    ids = list(range(103, 403))
    answer = await begin(service, tokenizer, (5,) * 4, params(302, GREEDY), ids[:-1])
    assert [item.token for item in answer] == [*ids, 403, 404]
    assert [step for batch in engine.batches for step in batch] == [
        (0, 0, 4),
        (0, 4, 128),
        (0, 132, 128),
        (0, 260, 43),
        (0, 303, 1),
        (0, 304, 1),
    ]
    assert engine.held == [0, 0]
    whole = await begin(service, tokenizer, (5,) * 4, params(3, GREEDY), ids[:3])
    assert [item.token for item in whole] == ids[:3]
    assert whole[-1].finish == FinishReason.LENGTH


@pytest.mark.parametrize(
    ("prefix", "most", "position"),
    [
        ([103, 104, 999, 106], 9, 2),
        ([102], 9, 0),
        ([103, 104, 105], 2, 2),
    ],
)
async def test_a_wrong_prefix_is_refused_where_it_is_wrong(counting, tokenizer, prefix, most, position):
    engine, service = counting
    with pytest.raises(InvalidPrefix) as found:
        await begin(service, tokenizer, (5,) * 4, params(most, GREEDY), prefix)
    assert found.value.position == position
    assert await collect(service.generate((5,), params(2, GREEDY), SEED, tokenizer)) == [100, 101]
    assert engine.held == [0, 0]


async def test_a_prefix_that_goes_on_after_the_end_is_refused_there(counting, tokenizer):
    _engine, service = counting
    asked = replace(params(9, GREEDY), stop_ids=(104,))
    assert [item.token for item in await begin(service, tokenizer, (5,) * 4, asked, [103])] == [103, 104]
    ended = await begin(service, tokenizer, (5,) * 4, asked, [103, 104])
    assert [item.finish for item in ended] == [None, FinishReason.STOP_TOKEN]
    with pytest.raises(InvalidPrefix, match="had ended") as found:
        await begin(service, tokenizer, (5,) * 4, asked, [103, 104, 105])
    assert found.value.position == 2


async def test_a_payers_next_prompt_is_read_from_where_it_differs(tokenizer):
    engine = SavingCountingEngine()
    service = EngineService(engine, cache_bytes_max=1000)
    system = tuple(range(5, 45))

    async def ask(prompt, owner):
        engine.batches.clear()
        stream = service.generate(prompt, params(3, GREEDY), SEED, tokenizer, owner=owner)
        ids = await collect(stream)
        return ids, stream.cached_tokens, [size for batch in engine.batches for _, _, size in batch]

    first = (*system, 50)
    said = [140, 141, 142]
    assert await ask(first, b"alice") == (said, 0, [41, 1, 1])
    assert await ask((*system, 60, 61), b"bob") == ([141, 142, 143], 0, [42, 1, 1])
    assert await ask((*system, 60, 61), None) == ([141, 142, 143], 0, [42, 1, 1])
    assert await ask((*system, 60, 61), b"alice") == ([141, 142, 143], 40, [2, 1, 1])
    # the next turn of the first conversation: all but the last id, which was sampled and never read
    assert await ask((*first, *said, 70), b"alice") == ([144, 145, 146], 43, [2, 1, 1])
    # the same again: one id is read, for its logits
    assert await ask((*first, *said, 70), b"alice") == ([144, 145, 146], 44, [1, 1, 1])
    load = service.get_load()
    assert (load.cached_tokens, load.prompt_tokens) == (40 + 43 + 44, 41 + 42 + 42 + 2 + 2 + 1)
    assert 0 < load.cache_bytes <= 1000
    assert engine.held == [0, 0]
    await service.close()


async def test_a_replay_reads_everything_though_its_beginning_is_kept(tokenizer):
    engine = SavingCountingEngine()
    service = EngineService(engine, cache_bytes_max=1000)
    prompt = (5,) * 40
    ids = await collect(service.generate(prompt, params(3, GREEDY), SEED, tokenizer, owner=b"alice"))
    engine.batches.clear()
    assert (await service.replay(prompt, ids, params(3, GREEDY), SEED)).equal
    assert engine.batches == [[(0, 0, 40)], [(0, 40, 1)], [(0, 41, 1)]]
    await service.close()


async def test_nothing_goes_on_from_broken_logits_or_half_a_prompt(tokenizer):
    engine = SavingCountingEngine(sequences_max=1)
    service = EngineService(engine, cache_bytes_max=1000)
    engine.spoiled = 7
    with pytest.raises(InvalidLogits):
        await collect(service.generate((*range(10, 50), 7), params(3, GREEDY), SEED, tokenizer, owner=b"alice"))
    engine.gate.clear()
    long = service.generate((5,) * 700, params(3, GREEDY), SEED, tokenizer, owner=b"alice")
    await until(lambda: service.get_load().running == 1)
    closing = asyncio.create_task(long.aclose())
    await asyncio.sleep(0)
    engine.gate.set()
    await closing
    assert service.get_load().cache_bytes == 0
    await service.close()


async def test_a_cache_without_bytes_or_an_engine_that_cannot_save_keeps_nothing(counting, tokenizer):
    engine = SavingCountingEngine()
    for service in (EngineService(engine), EngineService(CountingEngine(), cache_bytes_max=1000)):
        for _ in range(2):
            stream = service.generate((5,) * 40, params(3, GREEDY), SEED, tokenizer, owner=b"alice")
            await collect(stream)
            assert stream.cached_tokens == 0
        await service.close()


async def test_small_answers_pass_a_large_one_a_bounded_number_of_times(tokenizer):
    engine = CountingEngine(sequences_max=4, context_tokens=100, tokens_max=100)
    service = EngineService(engine)
    engine.gate.clear()
    order = []

    async def ask(name, size):
        async for _ in service.generate((5,) * size, params(10, GREEDY), SEED, tokenizer):
            pass
        order.append(name)

    tasks = [asyncio.create_task(ask("first", 20))]
    await until(lambda: service.get_load().running == 1)
    tasks += [asyncio.create_task(ask(name, size)) for name, size in [("large", 90)] + [("small", 2)] * 30]
    await until(lambda: service.get_load().waiting == 31)
    engine.gate.set()
    await asyncio.gather(*tasks)
    assert order.index("large") == OVERTAKEN_MAX + 1
    await service.close()


async def test_a_full_queue_says_when_to_come_back_and_the_load_how_long_one_waits(tokenizer):
    engine = CountingEngine(sequences_max=1)
    service = EngineService(engine, waiting_max=2, read_time_s=Stopwatch(engine))
    assert service.get_load().wait_s == 0.0
    await collect(service.generate((5,) * 4, params(20, GREEDY), SEED, tokenizer))  # a second an id, all 20 are used
    engine.gate.clear()
    streams = [service.generate((5,), params(20, GREEDY), SEED, tokenizer) for _ in range(1)]
    await until(lambda: service.get_load().running == 1)
    streams += [service.generate((5,) * 10, params(20, GREEDY), SEED, tokenizer) for _ in range(2)]
    before = sum(len(batch) for batch in engine.batches)
    with pytest.raises(RefusedBusy) as refusal:
        service.generate((5,), params(2, GREEDY), SEED, tokenizer)
    wait_s = service.get_load().wait_s
    # 20 ids of the one that runs, then twice a prompt of 10 and 20 ids; the id being read now may count or not
    assert refusal.value.retry_after_s == pytest.approx(20, abs=1)
    assert wait_s == pytest.approx(20 + 2 * (10 + 20), abs=1)
    engine.gate.set()
    for stream in streams:
        await collect(stream)
    assert sum(size for batch in engine.batches[before:] for _, _, size in batch) == pytest.approx(wait_s, abs=4)
    await service.close()
