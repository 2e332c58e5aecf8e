"""The real model, engine, tokenizer and record, once per test process."""

import sys
from pathlib import Path

import pytest

from deaios.compute.engines.llama import LlamaEngine
from deaios.compute.records import decode_record
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
