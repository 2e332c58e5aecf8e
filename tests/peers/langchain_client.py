"""What LangChain's users do, against the gateway at GATEWAY with KEY; prints one JSON object of what came back."""

import asyncio
import json
import os
import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


@tool
def get_weather(city: str, unit: str = "celsius") -> str:
    """The weather of a city now."""
    return f"rain in {city} ({unit})"


class Person(BaseModel):
    """Somebody."""

    name: str


def build(**options: object) -> ChatOpenAI:
    return ChatOpenAI(model="tiny", base_url=os.environ["GATEWAY"] + "/v1", api_key=os.environ["KEY"], **options)


def loop(chat: ChatOpenAI) -> dict[str, object]:
    """A tool loop by invoke, and the same question by stream."""
    bound = chat.bind_tools([get_weather])
    messages = [HumanMessage("weather?")]
    said = bound.invoke(messages)
    results = [ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"]) for call in said.tool_calls]
    final = bound.invoke([*messages, said, *results])
    whole = None
    for chunk in bound.stream(messages):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    forced = chat.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False).invoke(messages)
    return {
        "calls": [(call["name"], call["args"]) for call in said.tool_calls],
        "final": final.text,
        "streamed": [(call["name"], call["args"]) for call in whole.tool_calls],
        "forced": len(forced.tool_calls),
        "usage": said.usage_metadata is not None and said.usage_metadata["total_tokens"] > 0,
    }


async def talk(chat: ChatOpenAI) -> dict[str, object]:
    bound = chat.bind_tools([get_weather], strict=True)
    said = await bound.ainvoke("weather?")
    words = [chunk.text async for chunk in chat.astream("hello")]
    return {"calls": [call["name"] for call in said.tool_calls], "words": "".join(words)}


async def embed() -> dict[str, object]:
    """Vectors as its users get them: texts, not the ids of another vocabulary; as many at once as a request takes."""
    place = {"base_url": os.environ["GATEWAY"] + "/v1", "api_key": os.environ["KEY"]}
    maker = OpenAIEmbeddings(model="tiny", check_embedding_ctx_length=False, chunk_size=32, **place)
    texts = ["e" * count + "a" for count in range(40)]
    whole = maker.embed_documents(texts)
    return {
        "count": len(whole),
        "ordered": [vector[0] for vector in whole] == sorted(vector[0] for vector in whole),
        "query": maker.embed_query("ea") == whole[1] == await maker.aembed_query("ea"),
    }


def main() -> None:
    chat = build(temperature=0)
    structured = {
        method: chat.with_structured_output(Person, method=method).invoke("who?").name
        for method in ("json_schema", "function_calling", "json_mode")
    }
    streamed = [part.name for part in chat.with_structured_output(Person).stream("who?")]
    sys.stdout.write(
        json.dumps(
            {
                "chat": loop(chat),
                "responses": loop(build(use_responses_api=True)),
                "async": asyncio.run(talk(chat)),
                "embeddings": asyncio.run(embed()),
                "structured": structured,
                "structured_stream": streamed[-1],
                "structured_responses": build(use_responses_api=True)
                .with_structured_output(Person)
                .invoke("who?")
                .name,
            }
        )
    )


if __name__ == "__main__":
    main()
