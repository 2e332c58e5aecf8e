"""Answers held to schemas and to tools: margins of honest ones, and how soon a cheat is caught where masks leave little
choice.

    python -m bench.detection.constrained [--tokens 2000] [--windows 24] [--served FILE]

Honest answers are decoded eight at once and checked alone, some on both engines. A cheat's answers follow each other,
as an auditor buys them; a window is so many tokens in a row. Exit status 1 when an honest token is flagged, or a
cheat escapes more than a tenth of its windows of 256 tokens.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.detection.calibration import Bench
from bench.detection.campaign import default_model
from bench.detection.windows import make_seed
from deaios.compute.constraint import Choice, Constraint, json_object, json_schema, tool_calls
from deaios.compute.engine import Engine, Step
from deaios.compute.engines import open_engine
from deaios.compute.expansion import requantise_q8_0
from deaios.compute.generation import Generation
from deaios.compute.masking import MaskState, compile_mask
from deaios.compute.records import DEFAULT_THRESHOLDS
from deaios.compute.tools import Tool
from deaios.compute.verification import Report, verify_output
from deaios.ledger.structs import FinishReason, Params
from deaios.primitives.hashing import ZERO32

TOGETHER = 8
CONTEXT_TOKENS = 512
ANSWER_TOKENS = 128
WINDOW_TOKENS = (128, 256)
CAUGHT_MIN = 0.9

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "job": {"type": "string", "maxLength": 40},
        "hobbies": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 4},
    },
    "required": ["name", "age", "job", "hobbies"],
    "additionalProperties": False,
}
_REVIEW = {
    "type": "object",
    "properties": {
        "verdict": {"enum": ["good", "mixed", "bad"]},
        "stars": {"type": "number", "minimum": 0, "maximum": 5},
        "summary": {"type": "string"},
        "would_buy_again": {"type": "boolean"},
    },
    "required": ["verdict", "stars", "summary", "would_buy_again"],
    "additionalProperties": False,
}
_TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "topic": {"type": "string", "maxLength": 30},
                "parts": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 3},
            },
            "required": ["topic"],
            "additionalProperties": False,
        }
    },
}
_TOOLS = (
    Tool(
        "get_weather",
        "Weather of a city",
        '{"type":"object","properties":{"city":{"type":"string"},"unit":{"enum":["celsius","fahrenheit"]}},'
        '"required":["city"],"additionalProperties":false}',
    ),
    Tool(
        "send_mail",
        "Send an electronic letter",
        '{"type":"object","properties":{"to":{"type":"string"},"subject":{"type":"string"},"body":{"type":"string"}},'
        '"required":["to","subject","body"],"additionalProperties":false}',
    ),
)


@dataclass(frozen=True)
class Task:
    """A question and what its answer is held to."""

    question: str
    constraint: Constraint
    tools: tuple[Tool, ...] = ()


def _calls(choice: Choice | str) -> Constraint:
    constraint = tool_calls(_TOOLS, choice, parallel=False)
    assert constraint is not None
    return constraint


TASKS = (
    Task("Invent a person and describe them as JSON.", json_schema(_PERSON)),
    Task("Review a kettle that leaks. Answer as JSON.", json_schema(_REVIEW)),
    Task("Write to ann@example.com that the train is late.", _calls("send_mail"), _TOOLS),
    Task("Outline a book about bees as a tree in JSON.", json_schema(_TREE)),
    Task("Give three facts about Norway as a JSON object.", json_object()),
    Task("How warm is it in Lima?", _calls(Choice.REQUIRED), _TOOLS),
    Task("Describe a lighthouse keeper as JSON.", json_schema(_PERSON)),
    Task("Tell me about the sea, or look up the weather in Rome.", _calls(Choice.AUTO), _TOOLS),
)
PARAMS = (
    Params(800, 0, 1000, ANSWER_TOKENS, (), (), ZERO32),
    Params(0, 0, 1000, ANSWER_TOKENS, (), (), ZERO32),
    Params(1000, 40, 950, ANSWER_TOKENS, (), (), ZERO32),
)
CLAIMED = PARAMS[:1]


@dataclass(frozen=True)
class Cheat:
    """What a provider does instead."""

    name: str
    temperature_milli: int = 800
    is_quantised: bool = False
    ignores_mask: bool = False


CHEATS = (
    Cheat("weights in 8 bits (Q8_0)", is_quantised=True),
    Cheat("temperature 0.9 instead of 0.8", temperature_milli=900),
    Cheat("no mask", ignores_mask=True),
)


@dataclass(frozen=True)
class Said:
    """One answer as claimed."""

    prompt: tuple[int, ...]
    output: tuple[int, ...]
    params: Params
    seed: bytes
    finish: FinishReason
    constraint: bytes


class _Stream:
    """One answer in the making."""

    def __init__(self, bench: Bench, claims: Sequence[Params], number: int, cheat: Cheat | None) -> None:
        task = TASKS[number % len(TASKS)]
        messages = [{"role": "user", "content": task.question}]
        self.prompt = bench.template.render_ids(messages, bench.tokenizer, tools=task.tools)
        self.constraint = task.constraint.encode()
        # Another stride than the tasks', so that each task meets each kind of parameters.
        claim = claims[(number // len(TASKS) + number) % len(claims)]
        self.claimed = replace(claim, mask_hash=task.constraint.mask_hash())
        actual, mask = self.claimed, compile_mask(self.constraint, self.claimed.mask_hash, bench.tokenizer)
        if cheat is not None:
            actual = replace(actual, temperature_milli=cheat.temperature_milli)
            if cheat.ignores_mask:
                actual, mask = replace(actual, mask_hash=ZERO32), None
        self.seed = make_seed("constrained", cheat and cheat.name, number)
        self.machine = Generation(len(self.prompt), actual, self.seed, bench.tokenizer, mask=mask)
        self.unread, self.position = self.prompt, 0

    def step(self, sequence: int) -> Step:
        return Step(sequence, self.position, self.unread, 1)

    def take(self, row: np.ndarray) -> None:
        self.position += len(self.unread)
        self.unread = (self.machine.offer(row).token,)

    def said(self) -> Said:
        assert self.machine.finish is not None
        ids, finish = self.machine.output_ids, self.machine.finish
        return Said(self.prompt, ids, self.claimed, self.seed, finish, self.constraint)


def answer(bench: Bench, path: Path, tokens: int, claims: Sequence[Params], cheat: Cheat | None = None) -> list[Said]:
    """At least so many tokens of answers."""
    done: list[Said] = []
    with closing(_open(bench, "llama", path)) as engine:
        while sum(len(said.output) for said in done) < tokens:
            streams = [_Stream(bench, claims, len(done) + place, cheat) for place in range(TOGETHER)]
            while active := [(i, stream) for i, stream in enumerate(streams) if stream.machine.finish is None]:
                for (_, stream), rows in zip(active, engine.decode([s.step(i) for i, s in active]), strict=True):
                    stream.take(rows[0])
            for sequence in range(TOGETHER):
                engine.forget(sequence)
            done += [stream.said() for stream in streams]
    return done


def _open(bench: Bench, kind: str, path: Path) -> Engine:
    assert kind in ("llama", "numpy")
    return open_engine(
        kind,  # type: ignore[arg-type]  # asserted above
        path,
        threads=bench.threads,
        context_tokens=CONTEXT_TOKENS,
        sequences_max=TOGETHER,
    )


class _Counted:
    """Masks that are counted: how long they take, and how many leave one id only."""

    def __init__(self, state: MaskState) -> None:
        self.mask_hash = state.mask_hash
        self._state = state
        self.times_s: list[float] = []
        self.sizes: list[int] = []

    def mask(self) -> np.ndarray:
        start = time.perf_counter()
        mask = self._state.mask()
        self.times_s.append(time.perf_counter() - start)
        self.sizes.append(int(mask.sum()))
        return mask

    def accept(self, token: int) -> None:
        start = time.perf_counter()
        self._state.accept(token)
        self.times_s[-1] += time.perf_counter() - start


def check(bench: Bench, engine: Engine, said: Said) -> tuple[Report, _Counted]:
    """The verdict on one answer."""
    state = compile_mask(said.constraint, said.params.mask_hash, bench.tokenizer)
    assert state is not None
    counted = _Counted(state)
    report = verify_output(
        engine,
        said.prompt,
        said.output,
        said.params,
        said.seed,
        said.finish,
        0,
        DEFAULT_THRESHOLDS,
        bench.tokenizer,
        mask=counted,  # type: ignore[arg-type]  # the same two methods, counted
    )
    return report, counted


def measure_honest(bench: Bench, checker: str, answers: Sequence[Said]) -> dict[str, object]:
    """Margins of honest answers."""
    with closing(_open(bench, checker, bench.served)) as engine:
        found = [check(bench, engine, said) for said in answers]
    margins = [margin for report, _ in found for margin in report.margins]
    sizes = [size for _, counted in found for size in counted.sizes]
    times = sorted(time_s for _, counted in found for time_s in counted.times_s)
    return {
        "name": f"honest, 8 at once, checked by {checker}",
        "tokens": len(margins),
        "forced": sum(size == 1 for size in sizes),
        "flagged": sum(len(report.violations) for report, _ in found),
        "inexact": sum(margin > 0 for margin in margins),
        "margin_max": round(max(margins), 6),
        "mask_us_median": round(times[len(times) // 2] * 1e6),
        "mask_us_mean": round(sum(times) / len(times) * 1e6),
        "mask_us_p99": round(times[len(times) * 99 // 100] * 1e6),
    }


def measure_cheat(bench: Bench, cheat: Cheat, path: Path, windows: int) -> dict[str, object]:
    """In how many windows a cheat is caught; answers are a stream of tokens, cut into windows."""
    answers = answer(bench, path, windows * WINDOW_TOKENS[0], CLAIMED, cheat)
    broken: list[bool] = []
    with closing(_open(bench, "llama", bench.served)) as engine:
        for said in answers:
            report, _ = check(bench, engine, said)
            places = {violation.position for violation in report.violations}
            broken += [place in places for place in range(report.tokens_checked)]
    result: dict[str, object] = {"name": cheat.name, "tokens": len(broken), "violations": sum(broken)}
    for size in WINDOW_TOKENS:
        # Windows overlap by half, and none goes beyond what was audited.
        cuts = [any(broken[first : first + size]) for first in range(0, max(1, len(broken) - size + 1), size // 2)]
        result[f"caught_{size}"] = round(sum(cuts) / len(cuts), 4)
        result[f"windows_{size}"] = len(cuts)
    return result


def run(served: Path, folder: Path, tokens: int, windows: int, tell: Callable[[dict[str, object]], None]) -> bool:
    """The whole measurement; whether it holds."""
    bench = Bench.open(served)
    honest = answer(bench, served, tokens, PARAMS)
    holds = True
    for checker, some in (("llama", honest), ("numpy", honest[: 2 * TOGETHER])):
        line = measure_honest(bench, checker, some)
        tell(line)
        holds = holds and line["flagged"] == 0
    for cheat in CHEATS:
        path = served
        if cheat.is_quantised:
            path = folder / "q8_0.gguf"
            requantise_q8_0(served, path)
        line = measure_cheat(bench, cheat, path, windows)
        tell(line)
        caught = line[f"caught_{WINDOW_TOKENS[-1]}"]
        assert isinstance(caught, float)
        holds = holds and caught >= CAUGHT_MIN
    return holds


def _tell(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.detection.constrained", description=__doc__)
    parser.add_argument("--served", type=Path, help="F16 expansion of the default model; found or made when left out")
    parser.add_argument("--tokens", type=int, default=2000, help="honest tokens")
    parser.add_argument("--windows", type=int, default=24, help="windows of 128 tokens per cheat")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        served = options.served or default_model()
        holds = run(
            served, Path(name), options.tokens, options.windows, lambda line: print(json.dumps(line), flush=True)
        )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
