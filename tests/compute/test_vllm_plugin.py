"""The logits processor for vLLM against the product's own sampling, through fakes of both of vLLM's interfaces.

Needs torch (`pip install "deaios[transformers]"`); without it these tests are skipped, and nothing here is checked.
"""

import importlib
import json
import sys
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from deaios.compute.engine import Step
from deaios.compute.engines.upstream.client import UpstreamChoice, open_upstream
from deaios.compute.engines.upstream.dialects import Order, build_xargs
from deaios.compute.records import DEFAULT_THRESHOLDS
from deaios.compute.sampling import draw_words, gumbel_of, sample
from deaios.compute.tokenizer import Tokenizer
from deaios.compute.verification import verify_output
from deaios.ledger.structs import Level, Params
from deaios.primitives.hashing import ZERO32, sha256
from deaios.runtime.client import HttpClient

torch = pytest.importorskip("torch", reason="torch is not installed: the vLLM plug-in and its sampling are NOT tested")

VECTORS = json.loads((Path(__file__).parents[2] / "docs" / "spec" / "sampling.json").read_text())
SEED = sha256(b"vllm")
VOCABULARY = 1003


class MoveDirectionality(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


@dataclass(frozen=True)
class BatchUpdate:
    batch_size: int
    removed: list = field(default_factory=list)
    added: list = field(default_factory=list)
    moved: list = field(default_factory=list)


class ProcessorOfV1(ABC):
    @classmethod
    def validate_params(cls, sampling_params):
        return None

    @abstractmethod
    def __init__(self, vllm_config, device, is_pin_memory): ...

    @abstractmethod
    def apply(self, logits): ...

    @abstractmethod
    def is_argmax_invariant(self): ...

    @abstractmethod
    def update_state(self, batch_update): ...


class ProcessorOfV2(ABC):
    def __init__(self, vllm_config, req_states):
        self.req_states = req_states

    @classmethod
    def validate_params(cls, sampling_params):
        return None

    def add_request(self, req_idx, sampling_params):
        return True

    def apply_staged_writes(self):
        return None

    @abstractmethod
    def apply(self, logits, ctx): ...


def load_plugin(monkeypatch, **interfaces):
    """Import the plug-in afresh beside a fake vLLM that has these interfaces."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("vllm", "deaios_vllm")]:
        monkeypatch.delitem(sys.modules, name)
    paths = {
        "v1": "vllm.v1.sample.logits_processor.interface",
        "v2": "vllm.v1.worker.gpu.sample.logits_processor.interface",
    }
    for kind, base in interfaces.items():
        parts = paths[kind].split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[:count])
            if name not in sys.modules:
                monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules[paths[kind]].LogitsProcessor = base
    return importlib.import_module("deaios_vllm")


@pytest.fixture
def plugin(monkeypatch):
    return load_plugin(monkeypatch, v1=ProcessorOfV1, v2=ProcessorOfV2)


def params(temperature=800, top_k=0, top_p=1000):
    return Params(temperature, top_k, top_p, 64, (), (), ZERO32)


def request(wanted, seed=SEED, **changes) -> Any:
    order = Order("m", (1, 2), "", (), wanted, seed, Level.SEEDED)
    values = {"extra_args": build_xargs(order), "temperature": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}
    return SimpleNamespace(**values | changes)


WAYS = [params(t, k, p) for t in (0, 1, 800, 2000) for k in (0, 1, 7, 5000) for p in (1, 500, 950, 1000)]


def random_rows(dice, count):
    rows = (dice.standard_normal((count, VOCABULARY)) * 3).astype(np.float32)
    rows[:, 17] = rows[:, 400]  # ties
    return rows


def test_words_and_noise_are_the_products(plugin):
    from deaios_vllm import seeded

    for vector in VECTORS["words"]:
        data = bytes.fromhex(vector["seed"][2:])
        key = (int.from_bytes(data[:8], "little"), int.from_bytes(data[8:16], "little"))
        found = seeded.draw_words([key], torch.tensor([vector["position"]]), len(vector["words"]))
        assert found[0].tolist() == vector["words"]
    keys, positions = [(0, 0), ((1 << 64) - 1, 1 << 63)], [0, (1 << 32) - 1]
    words = seeded.draw_words(keys, torch.tensor(positions), 100_001)
    for row, (key, position) in enumerate(zip(keys, positions, strict=True)):
        data = key[0].to_bytes(8, "little") + key[1].to_bytes(8, "little") + bytes(16)
        expected = draw_words(data, position, 100_001)
        assert np.array_equal(words[row].numpy(), expected.astype(np.int64))
        noise = seeded.gumbel_of(words[row]).numpy()
        assert np.allclose(noise, gumbel_of(expected), rtol=1e-14, atol=0)


def test_every_sample_vector_is_picked(plugin):
    from deaios_vllm import seeded

    for vector in VECTORS["samples"]:
        row = torch.tensor(VECTORS["rows"][vector["row"]], dtype=torch.float32)[None] / 1024
        data, kind = bytes.fromhex(vector["seed"][2:]), vector["params"]
        key = (int.from_bytes(data[:8], "little"), int.from_bytes(data[8:16], "little"))
        draw = seeded.Draw(key, kind["temperatureMilli"], kind["topK"], kind["topPMilli"])
        assert int(seeded.pick_tokens(row, [draw], torch.tensor([vector["position"]]))) == vector["token"], vector


class V1Runner:
    """vLLM's V1 batch: rows that requests enter, leave, and move between; greedy decoding."""

    def __init__(self, processor):
        self.processor = processor
        self.rows = []

    def step(self, logits, update):
        self.processor.update_state(update)
        out = self.processor.apply(torch.from_numpy(logits))
        return out.argmax(1).tolist()


def test_v1_requests_keep_their_draws_through_any_batch(plugin):
    dice = np.random.default_rng(1)
    assert issubclass(plugin.SeededSampling, ProcessorOfV1)
    processor = plugin.SeededSampling(None, torch.device("cpu"), False)
    assert not processor.is_argmax_invariant()
    runner = V1Runner(processor)
    batch: list[Any] = []  # (params or None, seed, prompt ids, output ids)
    checked = 0
    for turn in range(80):
        removed, added, moved = [], [], []
        if len(batch) < 6:
            is_ours = bool(dice.integers(4))
            wanted, seed = WAYS[int(dice.integers(len(WAYS)))], sha256(bytes([turn]))
            item = (wanted if is_ours else None, seed, list(range(int(dice.integers(1, 9)))), [])
            sent = request(wanted, seed) if is_ours else SimpleNamespace(extra_args=None)
            added.append((len(batch), sent, item[2], item[3]))
            batch.append(item)
        elif turn % 3 == 0:
            gone = int(dice.integers(len(batch)))
            removed.append(gone)
            last = len(batch) - 1
            if gone != last:
                moved.append((last, gone, MoveDirectionality.UNIDIRECTIONAL))
                batch[gone] = batch[last]
            batch.pop()
        elif turn % 3 == 1:
            a, b = (int(place) for place in dice.choice(len(batch), 2, replace=False))
            moved.append((a, b, MoveDirectionality.SWAP))
            batch[a], batch[b] = batch[b], batch[a]
        has_changed = removed or added or moved
        logits = random_rows(dice, len(batch))
        tokens = runner.step(logits.copy(), BatchUpdate(len(batch), removed, added, moved) if has_changed else None)
        for row, ((wanted, seed, prompt, output), token) in enumerate(zip(batch, tokens, strict=True)):
            if wanted is not None:
                assert token == sample(logits[row], wanted, seed, len(prompt) + len(output))
                checked += 1
            else:
                assert token == int(logits[row].argmax())
            output.append(token)
    assert checked > 150


def test_v2_slots_keep_their_draws_in_any_order_of_rows(plugin):
    dice = np.random.default_rng(2)
    assert issubclass(plugin.SeededSampling, ProcessorOfV2)
    processor = plugin.SeededSampling(None, SimpleNamespace(max_num_reqs=8))
    slots: dict[int, Any] = {}
    for turn in range(60):
        slot = int(dice.integers(8))
        is_ours = bool(dice.integers(4))
        wanted, seed = WAYS[int(dice.integers(len(WAYS)))], sha256(bytes([turn]))
        sent = request(wanted, seed) if is_ours else SimpleNamespace(extra_args={})
        assert processor.add_request(slot, sent) is is_ours
        slots[slot] = (wanted if is_ours else None, seed)
        processor.apply_staged_writes()
        order = dice.permutation(list(slots))
        drafts = 1 + turn % 2  # with drafted tokens a request owns several rows
        mapping = np.repeat(order, drafts)
        positions = dice.integers(0, 1000, mapping.size)
        logits = random_rows(dice, mapping.size)
        context = SimpleNamespace(
            idx_mapping_np=order, expanded_idx_mapping=torch.from_numpy(mapping), pos=torch.from_numpy(positions)
        )
        tokens = processor.apply(torch.from_numpy(logits.copy()), context).argmax(1).tolist()
        for row, slot_of_row in enumerate(mapping.tolist()):
            ours, its_seed = slots[slot_of_row]
            position = int(positions[row]) + 1  # of the token that follows the one fed
            expected = int(logits[row].argmax()) if ours is None else sample(logits[row], ours, its_seed, position)
            assert tokens[row] == expected


def test_ids_that_vllm_masked_stay_out(plugin):
    dice = np.random.default_rng(3)
    processor = plugin.SeededSampling(None, torch.device("cpu"), False)
    mask = dice.random(VOCABULARY) < 0.05
    for place, wanted in enumerate(WAYS):
        processor.update_state(BatchUpdate(1, added=[(0, request(wanted), [1] * place, [])]))
        (row,) = random_rows(dice, 1)
        masked = np.where(mask, row, np.float32(-np.inf))
        token = int(processor.apply(torch.from_numpy(masked[None].copy())).argmax())
        assert token == sample(row, wanted, SEED, place, mask)


def test_a_second_pass_changes_nothing_and_a_broken_row_stays_broken(plugin):
    processor = plugin.SeededSampling(None, torch.device("cpu"), False)
    processor.update_state(BatchUpdate(1, added=[(0, request(params()), [1], [])]))
    (row,) = random_rows(np.random.default_rng(4), 1)
    once = processor.apply(torch.from_numpy(row[None].copy()))
    assert torch.equal(processor.apply(once.clone()), once)
    row[5] = np.nan
    assert bool(processor.apply(torch.from_numpy(row[None].copy())).isnan().any())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"deaios_seed": "00"}, "deaios_seed"),
        ({"deaios_seed": 7}, "deaios_seed"),
        ({"deaios_seed": "zz" * 16}, "deaios_seed"),
        ({"deaios_seed": None, "deaios_top_k": 3}, "deaios_seed"),
        ({"deaios_temperature_milli": 2001}, "deaios_temperature_milli"),
        ({"deaios_temperature_milli": 0.5}, "deaios_temperature_milli"),
        ({"deaios_top_k": True}, "deaios_top_k"),
        ({"deaios_top_p_milli": 0}, "deaios_top_p_milli"),
    ],
)
def test_wrong_arguments_are_refused_at_the_door_and_never_crash_the_engine(plugin, changes, says):
    wrong = request(params())
    wrong.extra_args |= changes
    with pytest.raises(ValueError, match=says):
        plugin.SeededSampling.validate_params(wrong)
    processor = plugin.SeededSampling(None, torch.device("cpu"), False)
    processor.update_state(BatchUpdate(1, added=[(0, wrong, [1], [])]))
    assert not processor.add_request(0, wrong)


def test_what_would_change_the_logits_before_the_pick_is_refused(plugin):
    plugin.SeededSampling.validate_params(request(params(), logit_bias=None, bad_words=[], min_tokens=0))
    plugin.SeededSampling.validate_params(SimpleNamespace(extra_args=None, repetition_penalty=1.3))
    for name, value in {"repetition_penalty": 1.1, "presence_penalty": 0.2, "logit_bias": {1: 2.0}}.items():
        with pytest.raises(ValueError, match=name):
            plugin.SeededSampling.validate_params(request(params(), **{name: value}))


def test_each_runner_alone_is_enough(monkeypatch):
    assert issubclass(load_plugin(monkeypatch, v1=ProcessorOfV1).SeededSampling, ProcessorOfV1)
    assert issubclass(load_plugin(monkeypatch, v2=ProcessorOfV2).SeededSampling, ProcessorOfV2)
    monkeypatch.undo()
    load_plugin(monkeypatch)


class PluggedServer:
    """A vLLM that is a NumPy engine with our processor behind its documented door."""

    def __init__(self, plugin, engine, tokenizer):
        self.plugin = plugin
        self.engine = engine
        self.tokenizer = tokenizer

    @asynccontextmanager
    async def serve(self):
        application = web.Application()
        application.router.add_get("/v1/models", self._list)
        application.router.add_get("/version", self._version)
        application.router.add_post("/tokenize", self._tokenize)
        application.router.add_post("/v1/completions", self._complete)
        runner = web.AppRunner(application)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def _list(self, request):
        return web.json_response({"data": [{"id": "tiny", "owned_by": "vllm", "max_model_len": 256}]})

    async def _version(self, request):
        return web.json_response({"version": "0.31.0"})

    async def _tokenize(self, request):
        return web.json_response({"tokens": list(self.tokenizer.encode_plain((await request.json())["prompt"]))})

    async def _complete(self, request):
        body = await request.json()
        sent = SimpleNamespace(extra_args=body["vllm_xargs"], temperature=body["temperature"])
        try:
            self.plugin.SeededSampling.validate_params(sent)
        except ValueError as error:
            return web.json_response({"error": {"message": str(error)}}, status=400)
        response = web.StreamResponse()
        await response.prepare(request)
        output: list[int] = []
        processor = self.plugin.SeededSampling(None, torch.device("cpu"), False)
        processor.update_state(BatchUpdate(1, added=[(0, sent, body["prompt"], output)]))
        (rows,) = self.engine.decode([Step(0, 0, tuple(body["prompt"]), 1)])
        finish = None
        while finish is None:
            output.append(int(processor.apply(torch.from_numpy(rows[:1].copy())).argmax()))
            is_end = output[-1] in self.tokenizer.end_ids
            finish = "stop" if is_end else "length" if len(output) == body["max_tokens"] else None
            choice = {"index": 0, "text": "…", "token_ids": output[-1:], "finish_reason": finish}
            await response.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
            if finish is None:
                (rows,) = self.engine.decode([Step(0, len(body["prompt"]) + len(output) - 1, (output[-1],), 1)])
        self.engine.forget(0)
        await response.write(b"data: [DONE]\n\n")
        return response


async def test_a_server_with_the_plugin_sells_level_two_answers_that_verify(plugin, model_files, numpy_engine):
    tokenizer = Tokenizer.from_gguf(model_files.served)
    prompt = tokenizer.encode_plain("The lighthouse keeper wrote:")
    server = PluggedServer(plugin, numpy_engine, tokenizer)
    async with server.serve() as url, HttpClient() as http:
        upstream = await open_upstream(http, UpstreamChoice(url), tokenizer)
        assert (upstream.level, upstream.context_tokens) == (Level.SEEDED, 256)
        for wanted in (replace(params(900, 40, 950), max_tokens=20), replace(params(0), max_tokens=6)):
            sampled = [item async for item in upstream.generate(prompt, wanted, SEED)]
            last = sampled[-1]
            report = verify_output(
                numpy_engine, prompt, [item.token for item in sampled], wanted, SEED, last.finish, last.stop_index,
                DEFAULT_THRESHOLDS, tokenizer,
            )  # fmt: skip
            assert report.ok
            assert report.exact_count == len(sampled)
