"""Honest tokens past every pair of engines, checked as an auditor checks: one answer, one pass, the shipped engines."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bench.detection.calibration import Answer, Bench
from bench.detection.cheats import make_params
from bench.detection.engines import CONTEXT_TOKENS
from bench.detection.questions import QUESTIONS
from bench.detection.windows import OutOfTime, make_seed
from deaios.compute.engine import Engine, Step
from deaios.compute.engines import open_engine
from deaios.compute.engines.numpy_llama import NumpyEngine
from deaios.compute.generation import Generation
from deaios.compute.records import DEFAULT_THRESHOLDS
from deaios.compute.verification import verify_output

PARAMS = (
    make_params(max_tokens=128),
    make_params(max_tokens=192),
    make_params(max_tokens=64),
    make_params(1000, 40, 950, max_tokens=128),
)
"""In turn: three lengths without filters, and top_k with top_p at the full temperature."""


@dataclass(frozen=True)
class Provider:
    """An engine and how many answers it decodes together."""

    engine: str
    together: int
    checkers: tuple[str, ...]

    def pair(self, checker: str) -> str:
        return f"{self.engine}_{self.together}_to_{checker}"


PROVIDERS = (
    Provider("llama", 16, ("numpy", "llama")),
    Provider("numpy", 16, ("llama",)),
    Provider("llama", 64, ("llama",)),
    Provider("llama", 1, ("llama",)),
)


@dataclass(frozen=True)
class Checked:
    """One honest answer after its check; a flagged token is one that the check calls a violation."""

    number: int
    tokens: int
    inexact: int
    flagged: int
    margin: float
    margins: tuple[float, ...]
    """All that are not 0."""


def open_shipped(kind: str, path: Path, sequences: int, threads: int) -> Engine:
    if kind == "numpy":
        return NumpyEngine(path, context_tokens=CONTEXT_TOKENS, sequences_max=sequences, resident=True)
    assert kind == "llama"
    return open_engine("llama", path, threads=threads, context_tokens=CONTEXT_TOKENS, sequences_max=sequences)


def answer(
    bench: Bench, provider: Provider, first: int, count: int, seed: int, is_late: Callable[[], bool]
) -> list[Answer]:
    """Answers `first` to `first + count - 1`, decoded together.

    Raises:
        OutOfTime: not finished.
    """
    assert count <= provider.together
    numbers = range(first, first + count)
    prompts = [bench.prompt(QUESTIONS[(seed + number) % len(QUESTIONS)]) for number in numbers]
    seeds = [make_seed("honest", seed, provider.engine, provider.together, number) for number in numbers]
    claims = [PARAMS[number % len(PARAMS)] for number in numbers]
    machines = [
        Generation(len(prompt), params, nonce, bench.tokenizer)
        for prompt, params, nonce in zip(prompts, claims, seeds, strict=True)
    ]
    with closing(open_shipped(provider.engine, bench.served, provider.together, bench.threads)) as engine:
        steps = [Step(i, 0, prompt, 1) for i, prompt in enumerate(prompts)]
        while steps:
            if is_late():
                raise OutOfTime
            following = []
            for step, rows in zip(steps, engine.decode(steps), strict=True):
                machine = machines[step.sequence]
                token = machine.offer(rows[0]).token
                if machine.finish is None:
                    following.append(Step(step.sequence, step.position + len(step.ids), (token,), 1))
                else:
                    engine.forget(step.sequence)
            steps = following
    answers = []
    for prompt, params, nonce, machine in zip(prompts, claims, seeds, machines, strict=True):
        assert machine.finish is not None
        answers.append(Answer(prompt, machine.output_ids, params, nonce, machine.finish, machine.stop_index))
    return answers


def check(
    bench: Bench, checker: Engine, answers: Sequence[Answer], first: int, is_late: Callable[[], bool]
) -> Iterator[Checked]:
    """The verdict on each answer.

    Raises:
        OutOfTime: not all were checked.
    """
    for number, item in enumerate(answers, first):
        if is_late():
            raise OutOfTime
        report = verify_output(
            checker,
            item.prompt,
            item.output,
            item.params,
            item.seed,
            item.finish,
            item.stop_index,
            DEFAULT_THRESHOLDS,
            bench.tokenizer,
        )
        inexact = tuple(round(margin, 6) for margin in report.margins if margin)
        flagged = len(report.violations)
        yield Checked(number, report.tokens_checked, len(inexact), flagged, report.margin_max, inexact)
