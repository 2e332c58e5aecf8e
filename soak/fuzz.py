"""A coverage-guided fuzzer over every decoder of outside bytes: the targets of `tests/fuzz/decoders.py`.

Each target runs in a process of its own (`python -m soak.fuzz TARGET SECONDS SEED`), with a bound on time and memory
for one input. Needs atheris, which only this search uses: `.venv/bin/uv pip install atheris==3.0.0`.
"""

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from soak.searches import Budget, Finding

ROOT = Path(__file__).parents[1]
TARGET_S_MIN = 5.0
"""Less time than this goes into starting."""
INPUT_S_MAX = 20
"""Longest one input may take on a busy machine; what a decoder needs grows with its input alone."""
MEMORY_MIB_MAX = 2048
EXIT_MARGIN_S = 120.0
HOW_TO_GET = "atheris is not installed; get it with: .venv/bin/uv pip install --python .venv/bin/python atheris==3.0.0"


def load_decoders() -> ModuleType:
    """The targets, which the tests own."""
    path = ROOT / "tests/fuzz/decoders.py"
    spec = importlib.util.spec_from_file_location("decoders", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["decoders"] = module
    spec.loader.exec_module(module)
    return module


def search(budget: Budget) -> str:
    """Share the budget among all targets, or among as many as get `TARGET_S_MIN` each."""
    if importlib.util.find_spec("atheris") is None:
        raise Finding(HOW_TO_GET, "python -m soak fuzz")
    names = list(load_decoders().all_targets())
    count = max(1, min(len(names), int(budget.seconds // TARGET_S_MIN)))
    chosen = [names[(budget.seed * count + place) % len(names)] for place in range(count)]
    seconds = budget.seconds / count
    inputs = 0
    for name in chosen:
        inputs += run_target(name, seconds, budget.seed)
    return f"fuzz: {inputs} inputs to {count} of {len(names)} decoders, {seconds:.0f} s each"


def run_target(name: str, seconds: float, seed: int) -> int:
    """How many inputs one target was given.

    Raises:
        Finding: an input broke the decoder's promise, or took too much time or memory; the input is kept.
    """
    command = [sys.executable, "-m", "soak.fuzz", name, str(max(1, int(seconds))), str(seed)]
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(
            [*command, place],
            cwd=ROOT,
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=seconds + EXIT_MARGIN_S,
        )
        said = done.stderr.decode(errors="replace")
        if done.returncode:
            raise Finding(f"{said[-3000:]}\n{_keep(name, Path(place))}", " ".join(command))
    counts = [line.split()[0].lstrip("#") for line in said.splitlines() if line.startswith("#")]
    return int(counts[-1]) if counts else 0


def _keep(name: str, place: Path) -> str:
    """Put the input among the regression cases."""
    kept = []
    for path in [*place.glob("crash-*"), *place.glob("timeout-*"), *place.glob("oom-*")]:
        folder = ROOT / "tests/fuzz/found"
        target = folder / f"{name}--{path.name[-8:]}.bin"
        target.write_bytes(path.read_bytes())
        kept.append(str(target.relative_to(ROOT)))
    return f"kept as {kept}; `pytest tests/fuzz` fails with it until it is mended"


def fuzz_one(name: str, seconds: int, seed: int, place: Path) -> None:
    """The process of one target; ends with the process."""
    import atheris  # type: ignore[import-not-found] # noqa: PLC0415 - a tool of this search only

    with atheris.instrument_imports(include=["deaios"]):
        decoders = load_decoders()
    target = decoders.all_targets()[name]
    corpus = place / "corpus"
    corpus.mkdir(parents=True)
    for index, data in enumerate(target.seeds):
        (corpus / f"seed-{index}").write_bytes(data)

    def test_one(data: bytes) -> None:
        decoders.check(target, data)

    options = [
        f"-max_total_time={seconds}",
        f"-seed={seed + 1}",
        f"-max_len={decoders.INPUT_BYTES_MAX}",
        f"-timeout={INPUT_S_MAX}",
        f"-rss_limit_mb={MEMORY_MIB_MAX}",
        f"-artifact_prefix={place}/",
        "-print_final_stats=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], test_one)
    atheris.Fuzz()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(sys.argv[4]) if len(sys.argv) > 4 else Path(scratch)
        fuzz_one(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), where)
