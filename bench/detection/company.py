"""Margins of answers made in company, through the service that sells them: classes F and Q, alone and up to 64 at once.

    python -m bench.detection.company [ROW ...] [--tokens N] [--seconds S] [--json]

Clients of a row keep a number of answers in flight, of several lengths, and one prompt of six is a long one, so that
pieces of prompts are read beside ids of answers all the time. Every answer is then checked as an auditor checks it, by
a verifier that reads it alone. Finished answers are kept in bench/results/company.jsonl and another run goes on. Exit
status 1 when an honest token of class F was flagged.
"""

import argparse
import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.detection.bounds import compute_upper_bound
from bench.detection.calibration import Bench
from bench.detection.campaign import RESULTS, default_model
from bench.detection.cheats import HIDDEN, make_params
from bench.detection.questions import QUESTIONS
from bench.detection.windows import make_seed
from deaios.compute.engine import Engine
from deaios.compute.engines import open_engine
from deaios.compute.engines.numpy_llama import NumpyEngine
from deaios.compute.expansion import requantise_q4_0, requantise_q8_0
from deaios.compute.records import DEFAULT_THRESHOLDS, Thresholds
from deaios.compute.service import EngineService
from deaios.compute.verification import verify_output
from deaios.ledger.structs import Params
from deaios.node.folder import model_cache
from deaios.node.model_package import fetch_default_model

CONTEXT_TOKENS = 1024
LENGTHS = (48, 64, 96, 32)
LONG_EVERY = 6
LONG_MESSAGE = " ".join(
    f"Rule {i}: answer in whole sentences, and be kind to everybody who asks." for i in range(1, 18)
)
"""A system prompt of some 300 ids; with it a prompt is read in two pieces."""
CACHE_BYTES = 64 << 20
WINDOWS = 2000
WINDOW_SIZES = (16, 32, 64, 128, 256, 512)
MEAN_LIMITS = {32: 0.037, 64: 0.023, 128: 0.017, 256: 0.0129, 512: 0.0106}
"""Class Q: a window's mean of min(margin, 1) above these is a violation (one and a half times the honest 99th
percentile, measured on other prompts), or any margin above `LONE_LIMIT`."""
LONE_LIMIT = 1.5
NO_LIMIT = Thresholds(margin_micro=1 << 40, epsilon_micro=DEFAULT_THRESHOLDS.epsilon_micro)
"""Margins are wanted here, not a verdict; windows are judged afterwards."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: class, what is done, how many at once.
        noise_class: `F` is served and checked in the F16 expansion, `Q` in the 4-bit file as it travels.
        company: answers in flight.
        tokens: wanted.
        weights: `served`, or what the cheat runs instead.
        temperature: what is sampled with, in thousandths; 800 is claimed.
        system: a system prompt that the ask does not have.
        wrong_seed: another seed than the ask's.
        turns: answers of one conversation, each going on from the last one's cells of the cache.
    """

    name: str
    noise_class: str
    company: int
    tokens: int
    weights: str = "served"
    temperature: int = 800
    system: str | None = None
    wrong_seed: bool = False
    turns: int = 1

    @property
    def is_honest(self) -> bool:
        return self.weights == "served" and self.temperature == 800 and self.system is None and not self.wrong_seed


HONEST = (
    *(Row(f"F honest {company}", "F", company, 2200) for company in (64, 32, 16, 8, 1)),
    Row("F honest 16 cached", "F", 16, 2200, turns=3),
    Row("Q honest 16", "Q", 16, 5500),
    Row("Q honest 1", "Q", 1, 5000),
)


def _list_cheats(noise_class: str, company: int) -> Iterator[Row]:
    def row(what: str, **how: Any) -> Row:  # Any: fields of Row
        return Row(f"{noise_class} {what} {company}", noise_class, company, 1024, **how)

    yield row("8 bits", weights="q8_0")
    yield row("4 bits", weights="q4_0")
    yield row("temperature 0.9", temperature=900)
    yield row("hidden prompt", system=HIDDEN)
    if noise_class == "F":
        yield row("4-bit file", weights="source")
    else:
        yield row("wrong seed", wrong_seed=True)


CHEATS = tuple(cheat for company in (16, 1) for kind in ("F", "Q") for cheat in _list_cheats(kind, company))
ROWS = {row.name: row for row in (*HONEST, *CHEATS)}
Line = dict[str, Any]
"""JSON of a finished answer: Any because JSON."""


@dataclass(frozen=True)
class Made:
    """One answer as its provider claims it."""

    number: int
    prompt: tuple[int, ...]
    output: tuple[int, ...]
    params: Params
    seed: bytes
    finish: Any  # a FinishReason; the service's own
    stop_index: int
    cached: int


class Kitchen:
    """Model files of a folder, and answers made with them."""

    def __init__(self, bench: Bench, source: Path, folder: Path) -> None:
        self.bench = bench
        self.source = source
        self._folder = folder

    def weights(self, row: Row) -> Path:
        """The file that a row's provider runs."""
        honest = self.judge_weights(row)
        if row.weights in ("served", "source"):
            return honest if row.weights == "served" else self.source
        path = self._folder / f"{row.noise_class}-{row.weights}.gguf"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            {"q8_0": requantise_q8_0, "q4_0": requantise_q4_0}[row.weights](self.bench.served, part)
            part.replace(path)
        return path

    def judge_weights(self, row: Row) -> Path:
        """The file that the record names."""
        return self.bench.served if row.noise_class == "F" else self.source

    async def make(self, row: Row, first: int, tokens: int, seconds: float) -> list[Made]:
        """Answers from number `first` on, until so many tokens are there or the time is over."""
        engine = open_engine(
            "llama",
            self.weights(row),
            threads=self.bench.threads,
            context_tokens=CONTEXT_TOKENS,
            sequences_max=row.company,
        )
        service = EngineService(engine, cache_bytes_max=CACHE_BYTES if row.turns > 1 else 0)
        numbers = itertools.count(first, row.turns)
        made: list[Made] = []
        deadline = time.monotonic() + seconds

        async def client() -> None:
            while sum(len(answer.output) for answer in made) < tokens and time.monotonic() < deadline:
                made.extend(await self._converse(service, row, next(numbers)))

        try:
            await asyncio.gather(*(client() for _ in range(row.company)))
        finally:
            await service.close()
        return sorted(made, key=lambda answer: answer.number)

    async def _converse(self, service: EngineService, row: Row, number: int) -> list[Made]:
        """The answers of one conversation."""
        bench, made = self.bench, []
        messages: list[dict[str, str]] = []
        if number % LONG_EVERY == 0:
            messages.append({"role": "system", "content": LONG_MESSAGE})
        for turn in range(row.turns):
            messages.append({"role": "user", "content": QUESTIONS[(number + 37 * turn) % len(QUESTIONS)]})
            claimed = make_params(max_tokens=LENGTHS[(number + turn) % len(LENGTHS)])
            seed = make_seed("company", row.name, number, turn)
            prompt = asked = bench.template.render_ids(messages, bench.tokenizer)
            if row.system is not None:
                hidden = [{"role": "system", "content": row.system}, *messages[messages[0]["role"] == "system" :]]
                prompt = bench.template.render_ids(hidden, bench.tokenizer)
            actual = make_params(row.temperature, max_tokens=claimed.max_tokens)
            # A hidden prompt moves positions, and with them the noise: the cheat would be caught at once, unless it
            # samples at the positions of the prompt that was asked.
            stream = service.generate(
                prompt,
                actual,
                bytes(32) if row.wrong_seed else seed,
                bench.tokenizer,
                owner=number.to_bytes(8) if row.turns > 1 else None,
            )
            if row.system is not None:
                stream._job.generation._prompt_count = len(
                    asked
                )  # the cheat reaches where no caller of the service can
            sampled = [item async for item in stream]
            ids = tuple(item.token for item in sampled)
            last = sampled[-1]
            assert last.finish is not None
            made.append(
                Made(number + turn, asked, ids, claimed, seed, last.finish, last.stop_index, stream.cached_tokens)
            )
            messages.append({"role": "assistant", "content": "".join(item.text_delta for item in sampled)})
        return made

    def _open_judge(self, row: Row) -> Engine:
        path = self.judge_weights(row)
        if row.noise_class == "F":
            return NumpyEngine(path, context_tokens=CONTEXT_TOKENS, resident=True)
        return open_engine("llama", path, threads=self.bench.threads, context_tokens=CONTEXT_TOKENS)

    def check(self, row: Row, answers: Sequence[Made]) -> Iterator[Line]:
        """Each answer with its margins, read alone; by the referee where activations are float."""
        with closing(self._open_judge(row)) as judge:
            for made in answers:
                report = verify_output(
                    judge,
                    made.prompt,
                    made.output,
                    made.params,
                    made.seed,
                    made.finish,
                    made.stop_index,
                    NO_LIMIT,
                    self.bench.tokenizer,
                )
                margins = [round(margin, 6) for margin in report.margins]
                yield {
                    "row": row.name,
                    "number": made.number,
                    "prompt": len(made.prompt),
                    "cached": made.cached,
                    "margins": margins,
                }


def read_lines(path: Path) -> dict[str, list[Line]]:
    """Finished answers by row."""
    found: dict[str, list[Line]] = {}
    if path.exists():
        for text in path.read_text().splitlines():
            line = json.loads(text)
            found.setdefault(line["row"], []).append(line)
    return found


def append_lines(path: Path, lines: Sequence[Line]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def summarise(row: Row, lines: Sequence[Line]) -> Line:
    """One row's figures: margins, and the share of windows that the class's rule catches."""
    margins = np.array([margin for line in lines for margin in line["margins"]])
    limit = DEFAULT_THRESHOLDS.margin if row.noise_class == "F" else LONE_LIMIT
    flagged = int((margins > limit).sum())
    return {
        "answers": len(lines),
        "tokens": len(margins),
        "cached": sum(line["cached"] for line in lines),
        "exact": float((margins == 0).mean()),
        "margin_mean": float(np.minimum(margins, 1.0).mean()),
        "margin_max": float(margins.max()),
        "flagged": flagged,
        "flag_rate_upper_bound_95": compute_upper_bound(flagged, len(margins)),
        "windows": {str(size): _share_caught(row, margins, size) for size in WINDOW_SIZES if size <= len(margins)},
    }


def _share_caught(row: Row, margins: "np.typing.NDArray[np.float64]", size: int) -> float | None:
    """Share of windows of consecutive audited tokens, around the end, in which the rule finds a violation."""
    starts = np.unique(np.linspace(0, len(margins) - 1, min(WINDOWS, len(margins))).astype(int))
    windows = np.take(margins, starts[:, None] + np.arange(size), mode="wrap")
    if row.noise_class == "F":
        return float((windows > DEFAULT_THRESHOLDS.margin).any(axis=1).mean())
    if size not in MEAN_LIMITS:
        return None
    is_caught = (np.minimum(windows, 1.0).mean(axis=1) > MEAN_LIMITS[size]) | (windows > LONE_LIMIT).any(axis=1)
    return float(is_caught.mean())


def print_table(summary: Mapping[str, Line]) -> None:
    head = "".join(f"{size:>7}" for size in WINDOW_SIZES)
    print(f"{'row':24}{'tokens':>7}{'cached':>7}{'exact':>7}{'mean':>8}{'max':>9}{'over':>5}{head}")
    for name, row in summary.items():
        shares = [row["windows"].get(str(size)) for size in WINDOW_SIZES]
        shown = "".join(f"{'-':>7}" if share is None else f"{share:7.3f}" for share in shares)
        print(
            f"{name:24}{row['tokens']:7}{row['cached']:7}{row['exact']:7.4f}{row['margin_mean']:8.4f}"
            f"{row['margin_max']:9.4f}{row['flagged']:5}{shown}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.detection.company", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which rows: {', '.join(ROWS)}; default all")
    parser.add_argument("--out", type=Path, default=RESULTS / "company.jsonl", help="file of finished answers")
    parser.add_argument("--served", type=Path, help="another model than the default one; class F only")
    parser.add_argument("--folder", type=Path, default=RESULTS / "cheats", help="where cheats' model files are kept")
    parser.add_argument("--tokens", type=int, help="tokens per row, in place of each row's own number")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long; run again to go on")
    parser.add_argument("--threads", type=int, default=1, help="threads of llama.cpp")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if unknown := sorted(set(options.rows) - set(ROWS)):
        parser.error(f"unknown rows {unknown}; known: {', '.join(ROWS)}")
    if options.served is not None and any(ROWS[name].noise_class != "F" for name in options.rows or ROWS):
        parser.error("--served has no 4-bit file beside it: name rows of class F")
    source = options.served or fetch_default_model(model_cache())
    kitchen = Kitchen(Bench.open(options.served or default_model(), options.threads), source, options.folder)
    deadline = time.monotonic() + options.seconds
    for name in options.rows or ROWS:
        row = ROWS[name]
        wanted = options.tokens or row.tokens
        while (left := deadline - time.monotonic()) > 0:
            lines = read_lines(options.out).get(name, [])
            have = sum(len(line["margins"]) for line in lines)
            if have >= wanted:
                break
            first = max((line["number"] for line in lines), default=-1) + 1
            # In portions, so that what is finished is kept; each begins and ends with fewer answers in flight.
            made = asyncio.run(kitchen.make(row, first, min(wanted - have, max(1024, 32 * row.company)), left))
            append_lines(options.out, list(kitchen.check(row, made)))
            print(f"{time.strftime('%H:%M:%S')} {name}: {have} and {sum(len(m.output) for m in made)}", file=sys.stderr)
    found = read_lines(options.out)
    summary = {name: summarise(row, found[name]) for name, row in ROWS.items() if name in found}
    print(json.dumps(summary, indent=1)) if options.json else print_table(summary)
    return 1 if any(row["flagged"] for name, row in summary.items() if ROWS[name].is_honest and name[0] == "F") else 0


if __name__ == "__main__":
    sys.exit(main())
