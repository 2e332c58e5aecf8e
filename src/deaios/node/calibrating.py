"""Calibrating a model file on this machine: which engines stand for two honest ones, and a journal to go on from.

The journal begins with what it is about (weights, engines); where that changed, the run begins anew.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from deaios.compute.calibration import (
    CONTEXT_TOKENS,
    OTHER,
    SERVED,
    TOGETHER,
    InvalidEvidence,
    Measured,
    Outcome,
    Subject,
    conclude,
    measure_honest,
)
from deaios.compute.engine import Engine
from deaios.compute.engines.llama import LlamaEngine
from deaios.compute.engines.numpy_llama import ARCHITECTURE, NumpyEngine
from deaios.compute.gguf_file import InvalidModelFile, read_model_file
from deaios.compute.records import NoiseClass
from deaios.runtime.disk import write_atomic

REFEREE_BYTES_MAX: Final = 400_000_000
"""Larger files would keep the NumPy engine busy for minutes; the second engine is then llama.cpp with other kernels."""

Progress = Callable[[str, int, int], None]
"""What is being done, tokens so far, tokens in all."""


def calibrate_served(
    served: Path, subject: Subject, journal: Path, *, threads: int, progress: Progress = lambda *_: None
) -> Outcome:
    """Measure two honest engines of a served file; goes on where an interrupted run stopped. Takes minutes.

    Args:
        served: GGUF file that is computed with.
        subject: what is measured.
        journal: file that keeps finished answers until the end.
        threads: for the arithmetic.
        progress: told after every answer.

    Raises:
        RefusedCalibration: the engines are too far apart for the class.
        InvalidModelFile, UnavailableEngine: the model cannot be run.
    """
    total = 2 * subject.tokens
    with _open_engines(served, subject.noise_class, threads) as engines:
        head = json.dumps(
            [subject.tensors_root.hex(), *(engines[name].profile.digest().hex() for name in (SERVED, OTHER))]
        )
        done = _read_journal(journal, head)
        tokens = sum(len(item.margins_micro) for item in done)
        what = f"measuring {engines[SERVED].profile.name} against {engines[OTHER].profile.name}"
        if not done:
            write_atomic(journal, (head + "\n").encode())
        with journal.open("a") as file:

            def keep(measured: Measured) -> None:
                nonlocal tokens
                file.write(measured.encode_line() + "\n")
                file.flush()
                tokens += len(measured.margins_micro)
                progress(what, min(tokens, total), total)

            progress(what, min(tokens, total), total)
            outcome = conclude(subject, engines, measure_honest(subject, engines, done, keep))
    journal.unlink()
    return outcome


@contextmanager
def _open_engines(served: Path, noise_class: NoiseClass, threads: int) -> Iterator[Mapping[str, Engine]]:
    with ExitStack() as stack:
        first = LlamaEngine(served, threads=threads, context_tokens=CONTEXT_TOKENS, sequences_max=TOGETHER)
        stack.callback(first.close)
        second = _open_other(served, noise_class, threads)
        stack.callback(second.close)
        yield {SERVED: first, OTHER: second}


def _open_other(served: Path, noise_class: NoiseClass, threads: int) -> Engine:
    """The NumPy engine, which shares no code with llama.cpp, where it knows the architecture; else other kernels."""
    model = read_model_file(served)
    is_small = served.stat().st_size <= REFEREE_BYTES_MAX
    if noise_class is NoiseClass.FLOAT and is_small and model.get_text("general.architecture") == ARCHITECTURE:
        try:
            return NumpyEngine(served, context_tokens=CONTEXT_TOKENS, sequences_max=TOGETHER)
        except InvalidModelFile:
            pass  # a variant of the architecture that only llama.cpp knows; the evidence names the engines that ran
    return LlamaEngine(served, threads=threads, context_tokens=CONTEXT_TOKENS, sequences_max=TOGETHER, kernels="other")


def _read_journal(journal: Path, head: str) -> list[Measured]:
    if not journal.exists():
        return []
    lines = journal.read_text().split("\n")
    if lines[0] != head:
        return []
    done = []
    for line in lines[1:]:
        try:
            done.append(Measured.decode_line(line))
        except InvalidEvidence:
            break  # the last line of a run that was cut off
    return done
