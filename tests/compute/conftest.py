"""Engines and tokenizer of the real default model, and llama.cpp's own server as their peer, once per test process."""

import json
import urllib.request

import pytest

from deaios.compute.engines.llama import LlamaEngine
from deaios.compute.engines.numpy_llama import NumpyEngine
from deaios.compute.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def llama_engine(model_files):
    engine = LlamaEngine(model_files.served, threads=2, context_tokens=512, sequences_max=4)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def numpy_engine(model_files):
    engine = NumpyEngine(model_files.served, context_tokens=512, sequences_max=4)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def tokenizer(model_files):
    return Tokenizer.from_gguf(model_files.served)


class LlamaServer:
    """llama.cpp's HTTP server inside this process; answers /tokenize, /detokenize and /apply-template."""

    def __init__(self, path):
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx = 256
        settings.port = 0
        settings.cpuparams.n_threads = 1
        settings.verbosity = -1
        self._server = xllamacpp.Server(settings)

    def post(self, route, **body):
        request = urllib.request.Request(
            self._server.listening_address + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def close(self):
        del self._server


@pytest.fixture(scope="session")
def llama_server(model_files):
    server = LlamaServer(model_files.source)
    yield server
    server.close()
