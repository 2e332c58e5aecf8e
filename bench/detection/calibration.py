"""The calibration of a model record's thresholds, on real engines: the run behind docs/spec/calibration.json.

    python -m bench.detection.calibration [--json] [--honest 1000] [--audited 256] [--nonces 4096]

Its form is evidence that a model record names by digest, so it stays as it is; how often cheats are caught is measured
by the rest of this package. Honest answers cross engines in both directions; each cheat must be caught within
`--audited` tokens; a buyer who grinds nonces at filter edges, on logits of a real provider and a real checker, must
frame nobody. Exit status 1 when one of them fails.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.detection.cheats import HIDDEN
from bench.detection.grinding import Grinding, find_edges, grind
from deaios.compute.calibration import ANSWER_TOKENS, QUESTIONS, TOGETHER
from deaios.compute.engine import Engine, Step
from deaios.compute.engines import open_engine
from deaios.compute.expansion import expand_to_f16, requantise_q4_0, requantise_q8_0
from deaios.compute.generation import Generation
from deaios.compute.records import DEFAULT_THRESHOLDS
from deaios.compute.sampling import Row
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.compute.verification import Report, verify_output
from deaios.ledger.structs import FinishReason, Params

CONTEXT_TOKENS = 256
Pick = Callable[[Row], int]


@dataclass(frozen=True)
class Answer:
    """One answer as claimed: what a checker is given."""

    prompt: tuple[int, ...]
    output: tuple[int, ...]
    params: Params
    seed: bytes
    finish: FinishReason
    stop_index: int
    rows: list[NDArray[np.float32]] = field(default_factory=list, repr=False)


@dataclass
class Bench:
    """Model, tokenizer and template of the default model."""

    served: Path
    tokenizer: Tokenizer
    template: ChatTemplate
    threads: int = 2

    @classmethod
    def open(cls, served: Path, threads: int = 2) -> "Bench":
        return cls(served, Tokenizer.from_gguf(served), ChatTemplate.from_gguf(served), threads)

    def prompt(self, question: str, system: str | None = None) -> tuple[int, ...]:
        messages = [{"role": "user", "content": question}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        return self.template.render_ids(messages, self.tokenizer)

    def engine(self, kind: str, path: Path | None = None) -> Engine:
        assert kind in ("llama", "numpy")
        return open_engine(
            kind,  # type: ignore[arg-type]  # asserted above
            path or self.served,
            threads=self.threads,
            context_tokens=CONTEXT_TOKENS,
            sequences_max=TOGETHER,
        )

    def answers(
        self,
        engine: Engine,
        claimed: Params,
        tokens: int,
        label: str,
        *,
        actual: Params | None = None,
        system: str | None = None,
        pick: Pick | None = None,
        keep_rows: bool = False,
    ) -> list[Answer]:
        """At least `tokens` sampled ids, several answers decoded together.

        Args:
            engine: the provider's.
            claimed: what the ask says.
            tokens: how many ids are wanted.
            label: decides the seeds.
            actual: what the provider samples with instead.
            system: a system prompt that the ask does not have.
            pick: the provider's own way to choose an id.
            keep_rows: keep the provider's logits.
        """
        done: list[Answer] = []
        while (count := sum(len(answer.output) for answer in done)) < tokens:
            wanted = min(TOGETHER, max(1, -(-(tokens - count) // ANSWER_TOKENS)))
            running = [_Stream(self, claimed, label, len(done) + i, actual, system) for i in range(wanted)]
            done += _run(engine, running, pick, keep_rows)
        return done

    def check(self, engine: Engine, answers: Sequence[Answer]) -> Iterator[Report]:
        for answer in answers:
            yield verify_output(
                engine,
                answer.prompt,
                answer.output,
                answer.params,
                answer.seed,
                answer.finish,
                answer.stop_index,
                DEFAULT_THRESHOLDS,
                self.tokenizer,
            )

    def rows(self, engine: Engine, answer: Answer) -> NDArray[np.float32]:
        """The checker's own logits at every output position, `(outputs, vocabulary)`."""
        engine.forget(0)
        (rows,) = engine.decode([Step(0, 0, answer.prompt + answer.output[:-1], len(answer.output))])
        engine.forget(0)
        return rows


class _Stream:
    """One answer in the making; positions count from the claimed prompt, the engine reads the actual one."""

    def __init__(
        self, bench: Bench, claimed: Params, label: str, number: int, actual: Params | None, system: str | None
    ) -> None:
        question = QUESTIONS[number % len(QUESTIONS)]
        self.claimed = claimed
        self.prompt = bench.prompt(question)
        self.seed = hashlib.sha256(f"{label} {number}".encode()).digest()
        self.machine = Generation(len(self.prompt), actual or claimed, self.seed, bench.tokenizer)
        self.pending = self.prompt if system is None else bench.prompt(question, system)
        self.position = 0
        self.rows: list[NDArray[np.float32]] = []

    def step(self, sequence: int) -> Step:
        return Step(sequence, self.position, self.pending, 1)

    def take(self, row: Row, pick: Pick | None) -> None:
        sampled = self.machine.offer(row) if pick is None else self.machine.accept(pick(row))
        self.position += len(self.pending)
        self.pending = (sampled.token,)

    def answer(self) -> Answer:
        assert self.machine.finish is not None
        output, stop_index = self.machine.output_ids, self.machine.stop_index
        return Answer(self.prompt, output, self.claimed, self.seed, self.machine.finish, stop_index, self.rows)


def _run(engine: Engine, streams: Sequence[_Stream], pick: Pick | None, keep_rows: bool) -> list[Answer]:
    for sequence in range(len(streams)):
        engine.forget(sequence)
    while active := [(i, stream) for i, stream in enumerate(streams) if stream.machine.finish is None]:
        results = engine.decode([stream.step(sequence) for sequence, stream in active])
        for (_, stream), rows in zip(active, results, strict=True):
            if keep_rows:
                stream.rows.append(rows[0].copy())
            stream.take(rows[0], pick)
    for sequence in range(len(streams)):
        engine.forget(sequence)
    return [stream.answer() for stream in streams]


def make_params(temperature: int = 800, top_k: int = 0, top_p: int = 1000) -> Params:
    return Params(temperature, top_k, top_p, ANSWER_TOKENS, (), (), bytes(32))


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    name: str
    tokens: int
    exact: float
    margin_max: float
    violations: int
    first: int | None
    """Audited tokens until the first violation."""
    ok: bool
    seconds: float


def summarise(name: str, reports: Sequence[Report], *, honest: bool, audited: int, seconds: float) -> Result:
    margins = [margin for report in reports for margin in report.margins]
    bad = [i for i, margin in enumerate(margins) if margin > DEFAULT_THRESHOLDS.margin]
    broken = sum(len(report.violations) for report in reports)
    caught = bool(bad) and bad[0] < audited
    return Result(
        name=name,
        tokens=len(margins),
        exact=sum(margin == 0.0 for margin in margins) / max(len(margins), 1),
        margin_max=max(margins, default=0.0),
        violations=broken,
        first=bad[0] + 1 if bad else None,
        ok=broken == 0 if honest else caught,
        seconds=seconds,
    )


def measure_honest(bench: Bench, provider: str, checker: str, tokens: int, params: Params | None = None) -> Result:
    start = time.monotonic()
    params = params or make_params()
    with closing(bench.engine(provider)) as engine:
        answers = bench.answers(engine, params, tokens, f"{provider} {params.top_k} {params.top_p_milli}")
    with closing(bench.engine(checker)) as engine:
        reports = list(bench.check(engine, answers))
    name = f"honest {provider} -> {checker}"
    if params.top_k or params.top_p_milli < 1000:
        name += f" top_k={params.top_k} top_p={params.top_p_milli / 1000}"
    return summarise(name, reports, honest=True, audited=0, seconds=time.monotonic() - start)


CHEATS: dict[str, dict[str, object]] = {
    "8-bit weights": {"weights": requantise_q8_0},
    "4-bit weights": {"weights": requantise_q4_0},
    "temperature 0.9 for 0.8": {"actual": make_params(900)},
    "hidden system prompt": {"system": HIDDEN},
    "greedy for sampled": {"pick": lambda row: int(np.argmax(row))},
}


def measure_cheat(bench: Bench, name: str, checker: Engine, audited: int, folder: Path) -> Result:
    start = time.monotonic()
    cheat = dict(CHEATS[name])
    weights = cheat.pop("weights", None)
    path = bench.served
    if callable(weights):
        path = folder / f"{name.replace(' ', '-')}.gguf"
        weights(bench.served, path)
    with closing(bench.engine("llama", path)) as engine:
        answers = bench.answers(engine, make_params(), audited, name, **cheat)  # type: ignore[arg-type]  # CHEATS names them
    reports = list(bench.check(checker, answers))
    return summarise(name, reports, honest=False, audited=audited, seconds=time.monotonic() - start)


def run(served: Path, honest: int, audited: int, nonces: int, folder: Path) -> dict[str, object]:
    """The whole bench; `honest`, `audited` and `nonces` are sizes."""
    bench = Bench.open(served)
    results = [
        measure_honest(bench, "llama", "numpy", honest),
        measure_honest(bench, "numpy", "llama", honest),
        measure_honest(bench, "llama", "numpy", max(honest // 4, ANSWER_TOKENS), make_params(1000, 40, 950)),
    ]
    with closing(bench.engine("numpy")) as checker:
        results += [measure_cheat(bench, name, checker, audited, folder) for name in CHEATS]
        with closing(bench.engine("llama")) as provider:
            answers = bench.answers(provider, make_params(1000), 4 * ANSWER_TOKENS, "edges", keep_rows=True)
        rows = [bench.rows(checker, answer) for answer in answers]
    edges = find_edges(answers, rows, 8)
    grindings = {"real logits": grind(edges, nonces), "simulated noise": grind(edges[:2], nonces, noise=0.006)}
    return {
        "threshold": DEFAULT_THRESHOLDS.margin,
        "epsilon": DEFAULT_THRESHOLDS.epsilon,
        "margins": [_as_dict(result) for result in results],
        "grinding": {name: _as_dict(result) for name, result in grindings.items()},
        "ok": all(result.ok for result in results) and all(result.ok for result in grindings.values()),
    }


def _as_dict(value: Result | Grinding) -> dict[str, object]:
    return dict(vars(value))


def print_table(outcome: dict[str, object]) -> None:
    margins, grinding = outcome["margins"], outcome["grinding"]
    assert isinstance(margins, list)
    assert isinstance(grinding, dict)
    print(f"{'answers':44} {'tokens':>6} {'exact':>7} {'max margin':>10} {'broken':>6} {'first':>5} {'s':>6}")
    for line in margins:
        first = "-" if line["first"] is None else line["first"]
        print(
            f"{line['name']:44} {line['tokens']:6} {line['exact']:7.4f} {line['margin_max']:10.4f} "
            f"{line['violations']:6} {first!s:>5} {line['seconds']:6.1f} {'ok' if line['ok'] else 'FAILED'}"
        )
    print(
        f"\n{'grinding nonces at filter edges':32} {'edges':>5} {'nonces':>7} {'framed':>6} {'without edge rule':>18}"
    )
    for name, line in grinding.items():
        print(
            f"{name:32} {line['edges']:5} {line['nonces']:7} {line['framed']:6} {line['framed_without_edge_rule']:18} "
            f"max margin {line['margin_max']:.4f} {line['seconds']:.1f} s {'ok' if line['ok'] else 'FAILED'}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--source", type=Path, help="GGUF file of the default model; fetched when left out")
    parser.add_argument("--served", type=Path, help="its F16 expansion; made when left out")
    parser.add_argument("--honest", type=int, default=1000, help="honest tokens per direction")
    parser.add_argument("--audited", type=int, default=256, help="tokens in which a cheat must be caught")
    parser.add_argument("--nonces", type=int, default=4096, help="nonces per edge")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        served = options.served
        if served is None:
            source = options.source
            if source is None:
                from deaios.node.model_package import fetch_default_model  # noqa: PLC0415  # only when nothing is given

                source = fetch_default_model(folder)
            served = folder / "served.gguf"
            expand_to_f16(source, served)
        outcome = run(served, options.honest, options.audited, options.nonces, folder)
    print(json.dumps(outcome, indent=1)) if options.json else print_table(outcome)
    return 0 if outcome["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
