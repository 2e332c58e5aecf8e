"""LangChain and LiteLLM as clients of the gateway, unmodified, in an environment of their own."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import load_module

from deaios.compute.embedding import is_embedding

ARGUMENTS = '{"city": "Oslo"}'
PERSON = '{"name": "Ada"}'


def build_call(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.fixture(scope="session")
def clients():
    """The environment; where it cannot be made, the tests are skipped with the reason."""
    module = load_module(Path(__file__).parents[1] / "peers" / "clients.py")
    try:
        return module.install_clients()
    except module.AbsentClients as reason:
        pytest.skip(f"client libraries are absent: {reason}")


@pytest.fixture
def talking(world):
    """A gateway whose model calls a tool where it may, tells a tool's result, and else says what it is held to."""

    def reply(order):
        if is_embedding(order.params):
            return world.point(order)
        if b"\ntool(" in bytes(order.prompt_ids):
            return world.say("Rain at noon.")
        form = json.loads(order.constraint) if order.constraint else {"kind": None}
        if form["kind"] == "tool_calls":
            name = form["tools"][0]["name"]
            return world.say(build_call(name, ARGUMENTS if name == "get_weather" else PERSON))
        return world.say("Hello!" if form["kind"] is None else PERSON)

    world.buyer.reply = reply
    return world


async def run(clients, world, script):
    return await asyncio.to_thread(clients.run, script, world.url, world.key)


async def test_langchain(clients, talking):
    said = await run(clients, talking, "langchain_client.py")
    loop = {
        "calls": [["get_weather", {"city": "Oslo"}]],
        "final": "Rain at noon.",
        "streamed": [["get_weather", {"city": "Oslo"}]],
        "forced": 1,
        "usage": True,
    }
    assert said == {
        "chat": loop,
        "responses": loop,
        "async": {"calls": ["get_weather"], "words": "Hello!"},
        "structured": {"json_schema": "Ada", "function_calling": "Ada", "json_mode": "Ada"},
        "embeddings": {"count": 40, "ordered": True, "query": True},
        "structured_stream": "Ada",
        "structured_responses": "Ada",
    }


async def test_litellm(clients, talking):
    said = await run(clients, talking, "litellm_client.py")
    loop = {
        "calls": [["get_weather", ARGUMENTS]],
        "finish": "tool_calls",
        "final": "Rain at noon.",
        "streamed": [["get_weather", ARGUMENTS]],
        "forced": 1,
        "usage": True,
    }
    vectors = said.pop("embeddings")
    half = float(np.float16(0.75**0.5))
    assert vectors == {"vectors": [[0.5, half], [0.0, 1.0]], "packed": [0.5, half], "usage": 3}
    assert said == {"openai": loop, "anthropic": loop, "async": "Hello!", "structured": "Ada"}
