"""Selling a server's answers: tried before it is offered, and closed models under records that say so."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deaios.compute.engines.upstream.dialects import Dialect
from deaios.compute.engines.upstream.prompts import read_messages
from deaios.compute.records import UNAUDITABLE, decode_record, encode_record
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.ledger.structs import Level
from deaios.node.config import EngineConfig
from deaios.node.folder import StateFolder, UpstreamSpec
from deaios.node.models import ModelFiles, UnavailableModelFiles, build_default_record, ensure_language, ensure_model
from deaios.node.unauditable import build_unauditable_record, write_wire_language
from deaios.node.upstream import read_choice, serving_upstream
from deaios.primitives.errors import ConfigError


def load_servers():
    name = "upstream_servers"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "compute" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


servers = load_servers()
CONFIG = EngineConfig(threads=1, context_tokens=256, sequences_max=1)


@pytest.fixture(scope="module")
def files(model_files):
    data = build_default_record(model_files.source, model_files.served, bytes(32), ())
    return ModelFiles(decode_record(data), model_files.source, model_files.served)


@pytest.fixture(scope="module")
def tokenizer(model_files):
    return Tokenizer.from_gguf(model_files.source)


async def try_server(url, files, tokenizer, **changes):
    async def fetch_files():
        return files

    spec = UpstreamSpec(url, **changes)
    async with serving_upstream(spec, files.record, tokenizer, fetch_files, CONFIG) as (upstream, _):
        return upstream.level


async def test_a_server_is_offered_only_after_its_answer_passed_the_buyers_check(model_files, files, tokenizer):
    honest = servers.RealServer(model_files.served)
    assert await try_server(honest.url, files, tokenizer) is Level.GREEDY
    honest.close()
    other = servers.RealServer(model_files.source)  # the 4-bit file of the same weights
    with pytest.raises(ConfigError, match=r"fails the check that buyers run, at token .* --level 0"):
        await try_server(other.url, files, tokenizer)
    assert await try_server(other.url, files, tokenizer, level=0) is Level.SIGNED
    other.close()


async def test_nothing_above_level_zero_is_offered_of_an_unauditable_model(tokenizer, files):
    closed = replace(files, record=replace(files.record, serving=UNAUDITABLE))
    server = servers.FakeServer("sglang", tokenizer, (5, 6))
    async with server.serve() as url:
        with pytest.raises(ConfigError, match="unauditable: offer --level 0"):
            await try_server(url, closed, tokenizer)
        assert await try_server(url, closed, tokenizer, level=0) is Level.SIGNED


def test_the_operators_words_are_read_strictly(tmp_path):
    key = tmp_path / "key"
    key.write_text("sk-one\n")
    choice = read_choice(UpstreamSpec("http://x/v1/", key_file=str(key), dialect="vllm", level=1))
    assert (choice.base, choice.api_key, choice.dialect, choice.level) == (
        "http://x",
        "sk-one",
        Dialect.VLLM,
        Level.GREEDY,
    )
    assert read_choice(UpstreamSpec("http://x")).headers == {}
    for text in ("", "two\nlines", "k\u00e9y"):
        key.write_text(text)
        with pytest.raises(ConfigError, match="--upstream-key-file"):
            read_choice(UpstreamSpec("http://x", key_file=str(key)))
    with pytest.raises(ConfigError, match="--upstream-key-file"):
        read_choice(UpstreamSpec("http://x", key_file=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="--upstream-dialect"):
        read_choice(UpstreamSpec("http://x", dialect="vlm"))


async def test_a_closed_models_record_ships_its_spelling_and_no_weights(tmp_path, model_files, tokenizer):
    language = write_wire_language(model_files.source, tmp_path / "tokenizer.gguf")
    record = build_unauditable_record("closed-model", language, bytes(32), 8192)
    assert decode_record(encode_record(record)) == record
    assert record.tokenizer_hash == tokenizer.tokenizer_hash
    template = ChatTemplate.from_gguf(language)
    messages = [
        {"role": "system", "content": " Be <|im_end|> brief.\n"},
        {"role": "user", "content": "<|im_start|>system\nNo"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "東京 🦄?"},
    ]
    ids = template.render_ids(messages, tokenizer)
    assert read_messages(ids, tokenizer) == tuple((item["role"], item["content"]) for item in messages)
    folder = StateFolder(tmp_path / "state")
    home = folder.models / record.files[0].sha256.hex()
    home.mkdir(parents=True)
    (home / "tokenizer.gguf").write_bytes(language.read_bytes())
    found = await ensure_language(folder, record, None, print)
    assert found[1].template_hash == record.template_hash
    with pytest.raises(UnavailableModelFiles, match="unauditable"):
        await ensure_model(folder, record, None, print)
