"""What LiteLLM's users do, against the gateway at GATEWAY with KEY; prints one JSON object of what came back."""

import asyncio
import base64
import json
import os
import struct
import sys

import litellm
from pydantic import BaseModel

URL, KEY = os.environ["GATEWAY"], os.environ["KEY"]
ASK = [{"role": "user", "content": "weather?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Now.", "parameters": SCHEMA}}]


class Person(BaseModel):
    name: str


def place(provider: str) -> dict[str, object]:
    base = URL if provider == "anthropic" else URL + "/v1"
    return {"model": f"{provider}/tiny", "api_base": base, "api_key": KEY}


def loop(provider: str) -> dict[str, object]:
    """A tool loop, and the same question as a stream."""
    where = place(provider)
    first = litellm.completion(**where, messages=ASK, tools=TOOLS, max_tokens=200)
    message = first.choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in message.tool_calls]
    second = litellm.completion(**where, messages=[*ASK, message, *results], tools=TOOLS, max_tokens=200)
    chunks = list(litellm.completion(**where, messages=ASK, tools=TOOLS, max_tokens=200, stream=True))
    built = litellm.stream_chunk_builder(chunks, messages=ASK)
    forced = litellm.completion(**where, messages=ASK, tools=TOOLS, tool_choice="required", max_tokens=200)
    return {
        "calls": [(call.function.name, call.function.arguments) for call in message.tool_calls],
        "finish": first.choices[0].finish_reason,
        "final": second.choices[0].message.content,
        "streamed": [(call.function.name, call.function.arguments) for call in built.choices[0].message.tool_calls],
        "forced": len(forced.choices[0].message.tool_calls),
        "usage": first.usage.total_tokens > 0,
    }


async def talk() -> str:
    stream = await litellm.acompletion(**place("openai"), messages=[{"role": "user", "content": "hi"}], stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def embed() -> dict[str, object]:
    where = place("openai")
    first = litellm.embedding(**where, input=["ea", "a"])
    again = await litellm.aembedding(**where, input=["ea", "a"], encoding_format="base64")
    packed = base64.b64decode(again.data[0]["embedding"])
    return {
        "vectors": [item["embedding"] for item in first.data],
        "packed": list(struct.unpack(f"<{len(packed) // 4}f", packed)),
        "usage": first.usage.prompt_tokens,
    }


def main() -> None:
    said = litellm.completion(**place("openai"), messages=ASK, response_format=Person)
    sys.stdout.write(
        json.dumps(
            {
                "openai": loop("openai"),
                "anthropic": loop("anthropic"),
                "async": asyncio.run(talk()),
                "embeddings": asyncio.run(embed()),
                "structured": Person.model_validate_json(said.choices[0].message.content).name,
            }
        )
    )


if __name__ == "__main__":
    main()
