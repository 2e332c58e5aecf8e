"""Every example of docs/api.md, run by a shell against the real server."""

import asyncio
import base64
import json
import os
import re
from functools import partial
from pathlib import Path

from deaios.compute.embedding import is_embedding
from deaios.market.question import Api

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"
BLOCKS = re.findall(r"```sh\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
MARK = "----"


def obey(world, order):
    """What a model must say that is held to what the document asks for."""
    kind = json.loads(order.constraint)["kind"] if order.constraint else None
    if is_embedding(order.params):
        return world.point(order)
    is_told = b"rain, 4 degrees" in bytes(order.prompt_ids)
    if kind == "tool_calls" and not is_told:
        return world.say('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>')
    return world.say('{"name": "Ada", "age": 36}' if kind == "json_schema" else "Hello, wörld!")


async def test_every_example_runs(start_gateway, tmp_path):
    async with start_gateway(alias="smollm2-135m-instruct") as world:
        world.buyer.reply = partial(obey, world)
        script = f"\necho {MARK}\n".join(BLOCKS)
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-euo",
            "pipefail",
            "-c",
            script,
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "GATEWAY": world.url, "KEY": world.key},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            said, complaint = await process.communicate()
        assert process.returncode == 0, complaint.decode()
        parts = said.decode().split(f"{MARK}\n")
        chat, others, tools, completions, embeddings, responses, messages, batches, rest = parts
        assert len(json.loads(chat)["choices"]) == 2
        assert json.loads(others)["model"] == "tiny-bytes"
        told, end = json.JSONDecoder().raw_decode(tools)
        person, end = json.JSONDecoder().raw_decode(tools, end)
        assert told["choices"][0]["message"]["content"] == "Hello, wörld!"
        assert json.loads(person["choices"][0]["message"]["content"]) == {"name": "Ada", "age": 36}
        assert "event: response.function_call_arguments.done" in tools[end:]
        assert '"stop_reason":"tool_use"' in tools[end:]
        assert len(json.loads(completions)["choices"]) == 2
        both, end = json.JSONDecoder().raw_decode(embeddings)
        assert [item["object"] for item in both["data"]] == ["embedding"] * 2
        assert len(base64.b64decode(json.loads(embeddings[end:])["data"][0]["embedding"])) == 8
        assert "event: response.completed" in responses
        assert '"deleted":true' in responses
        assert "event: message_stop" in messages
        assert '"input_tokens"' in messages
        assert json.loads(batches)["response"]["status_code"] == 200
        assert '"object":"usage"' in rest
        apis = [order.part.api for order in world.buyer.orders]
        assert {api: apis.count(api) for api in Api} == {
            Api.CHAT: 7,
            Api.COMPLETIONS: 2,
            Api.RESPONSES: 3,
            Api.MESSAGES: 2,
            Api.EMBEDDINGS: 3,
        }
