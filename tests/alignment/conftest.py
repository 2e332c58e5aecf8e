"""The real model, engine, tokenizer and record, once per test process."""

import sys
from pathlib import Path

import pytest

from deaios.alignment.recheck.service import EngineRecheck
from deaios.compute.engines.llama import LlamaEngine
from deaios.compute.expansion import requantise_q8_0
from deaios.compute.records import decode_record
from deaios.compute.service import EngineService
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.node.models import build_default_record

sys.path.insert(0, str(Path(__file__).parent))
from alignment_purchases import Bench, build_library


@pytest.fixture(scope="session")
def bench(model_files):
    engine = LlamaEngine(model_files.served, threads=2, context_tokens=512, sequences_max=1)
    data = build_default_record(model_files.source, model_files.served, bytes(32), (engine.profile.digest(),))
    yield Bench(
        engine=engine,
        tokenizer=Tokenizer.from_gguf(model_files.source),
        template=ChatTemplate.from_gguf(model_files.source),
        record=decode_record(data),
    )
    engine.close()


@pytest.fixture(scope="session")
def library(bench):
    """Four honest answers of two providers, with the chain that they are on."""
    return build_library(bench)


class LentEngine:
    """An engine that outlives the service that uses it."""

    def __init__(self, engine):
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def close(self):
        """The owner closes it."""


@pytest.fixture
async def recheck(bench):
    service = EngineService(LentEngine(bench.engine))
    yield EngineRecheck(service, bench.record, bench.tokenizer)
    await service.close()


@pytest.fixture(scope="session")
def weak_engine(model_files, tmp_path_factory):
    """The model with 8-bit weights: what a cheat computes with."""
    path = tmp_path_factory.mktemp("weak") / "q8_0.gguf"
    requantise_q8_0(model_files.served, path)
    engine = LlamaEngine(path, threads=2, context_tokens=512, sequences_max=1)
    yield engine
    engine.close()
