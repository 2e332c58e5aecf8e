"""A coverage-guided fuzzer over every decoder of outside bytes: the targets of `tests/fuzz/decoders.py`.

Each target runs in a process of its own (`python -m soak.fuzz SECONDS SEED PLACE TARGET ...` forks them), with a bound
on time and memory for one input. Needs atheris, which only this search uses: `.venv/bin/uv pip install atheris==3.0.0`.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from soak.searches import Budget, Finding

ROOT = Path(__file__).parents[1]
TARGET_S_MIN = 5.0
"""Less time than this goes into starting."""
INPUT_S_MAX = 20
"""Longest one input may take on a busy machine; what a decoder needs grows with its input alone."""
MEMORY_MIB_MAX = 2048
HOW_TO_GET = "atheris is not installed; get it with: .venv/bin/uv pip install --python .venv/bin/python atheris==3.0.0"


def load_decoders() -> ModuleType:
    """The targets, which the tests own."""
    for name in ("fuzz_target", "decoders_gateway", "decoders_rows", "decoders"):
        spec = importlib.util.spec_from_file_location(name, ROOT / f"tests/fuzz/{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules["decoders"]


def search(budget: Budget) -> str:
    """Share the budget among all targets, or among as many as get `TARGET_S_MIN` each."""
    if importlib.util.find_spec("atheris") is None:
        raise Finding(HOW_TO_GET, "python -m soak fuzz")
    names = list(load_decoders().all_targets())
    count = max(1, min(len(names), int(budget.seconds // TARGET_S_MIN)))
    chosen = [names[(budget.seed * count + place) % len(names)] for place in range(count)]
    seconds = budget.seconds / count
    inputs = run_targets(chosen, seconds, budget.seed)
    return f"fuzz: {sum(inputs.values())} inputs to {count} of {len(names)} decoders, {seconds:.0f} s each"


def run_targets(names: list[str], seconds: float, seed: int) -> dict[str, int]:
    """How many inputs each target was given.

    Raises:
        Finding: an input broke a decoder's promise, or took too much time or memory; the input is kept.
    """
    command = [sys.executable, "-m", "soak.fuzz", str(max(1, int(seconds))), str(seed)]
    inputs = {}
    with tempfile.TemporaryDirectory() as place:
        run = subprocess.run([*command, place, *names], cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
        for name in names:
            log = Path(place) / name / "log"
            said = log.read_text(errors="replace") if log.exists() else ""
            counts = re.findall(r"^#(\d+)", said, re.MULTILINE)
            inputs[name] = int(counts[-1]) if counts else 0
            if kept := _keep(name, Path(place) / name):
                raise Finding(f"{name}: {said[-3000:]}\n{kept}", f"python -m pytest tests/fuzz -k '{kept[0]}'")
        if run.returncode:
            raise Finding(
                f"the fuzzer ended with {run.returncode}: {said[-3000:]}", " ".join([*command, "PLACE", name])
            )
    return inputs


def _keep(name: str, place: Path) -> list[str]:
    """Put what was found among the regression cases, by name."""
    kept = []
    for path in [*place.glob("crash-*"), *place.glob("timeout-*"), *place.glob("oom-*")]:
        kept.append(f"{name}--{path.name[-8:]}")
        (ROOT / "tests/fuzz/found" / f"{kept[-1]}.bin").write_bytes(path.read_bytes())
    return kept


def fuzz(names: list[str], seconds: int, seed: int, place: Path) -> int:
    """Each target in turn, in a child of this process, which has instrumented the product once."""
    import atheris  # type: ignore[import-not-found] # noqa: PLC0415 - a tool of this search only

    with atheris.instrument_imports(include=["deaios"]):
        decoders = load_decoders()
    targets = decoders.all_targets()
    for name in names:
        child = os.fork()
        if not child:
            _fuzz_one(atheris, decoders, targets[name], seconds, seed, place / name)
        _, status = os.waitpid(child, 0)
        if status:
            return 1
    return 0


def _fuzz_one(atheris: ModuleType, decoders: ModuleType, target: Any, seconds: int, seed: int, place: Path) -> NoReturn:
    # Any: `fuzz_target.Target`, from a module that is loaded by its path
    corpus = place / "corpus"
    corpus.mkdir(parents=True)
    for index, data in enumerate(target.seeds):
        (corpus / f"seed-{index}").write_bytes(data)
    with (place / "log").open("wb") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())

    def test_one(data: bytes) -> None:
        sys.modules["fuzz_target"].check(target, data)

    options = [
        f"-max_total_time={seconds}",
        f"-seed={seed + 1}",
        f"-max_len={decoders.INPUT_BYTES_MAX}",
        f"-timeout={INPUT_S_MAX}",
        f"-rss_limit_mb={MEMORY_MIB_MAX}",
        f"-artifact_prefix={place}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], test_one)
    atheris.Fuzz()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(fuzz(sys.argv[4:], int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
