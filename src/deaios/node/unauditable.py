"""Selling a closed API: a record that says aloud that nobody can check what answers under it.

Token ids need a tokenizer and a template, and a closed API tells neither. The record ships those of the network's
default model with a plain ChatML template, as the spelling of prompts and answers on the wire; bills count its tokens.
Invariant: such a record names no weights, so that nothing under it can pass for more than level 0.
"""

import asyncio
from pathlib import Path
from typing import Final

from deaios.compute.gguf_file import Metadatum, ValueType, encode_header, read_model_file
from deaios.compute.records import (
    DEFAULT_THRESHOLDS,
    UNAUDITABLE,
    Calibration,
    ModelRecord,
    NoiseClass,
    RecordFile,
    encode_record,
)
from deaios.compute.records import record_id as compute_record_id
from deaios.compute.roots import compute_file_digest, compute_model_root
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.node.folder import RoleSpec, StateFolder
from deaios.node.models import LANGUAGE_NAME
from deaios.node.network import open_default_model
from deaios.node.offering import Progress
from deaios.node.providing import read_price
from deaios.node.session import open_session
from deaios.primitives.encoding import encode_hex
from deaios.primitives.hashing import tagged_sha256
from deaios.runtime.clock import SystemClock
from deaios.runtime.disk import write_atomic

NOTHING_TAG: Final = "deaios/unauditable/1"
CONTEXT_TOKENS_DEFAULT: Final = 8192
CHATML: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEMPLATE_KEY: Final = "tokenizer.chat_template"


def write_wire_language(model: Path, target: Path) -> Path:
    """A model's tokenizer under a ChatML template, without weights; one spelling for one tokenizer."""
    metadata = read_model_file(model).metadata
    kept = {
        key: item
        for key, item in metadata.items()
        if key.startswith("tokenizer.ggml.") or key == "general.architecture"
    }
    write_atomic(target, encode_header({**kept, _TEMPLATE_KEY: Metadatum(ValueType.STRING, CHATML)}, []))
    return target


def build_unauditable_record(name: str, language: Path, manifest: bytes, context_tokens: int) -> ModelRecord:
    """The record of a model that nobody but its owner has."""
    digest = compute_file_digest(language)
    return ModelRecord(
        name=name,
        files=(RecordFile(LANGUAGE_NAME, digest, language.stat().st_size, manifest),),
        model_root=compute_model_root({LANGUAGE_NAME: digest}),
        tensors_root=tagged_sha256(NOTHING_TAG, name.encode()),
        serving=UNAUDITABLE,
        tokenizer_hash=Tokenizer.from_gguf(language).tokenizer_hash,
        template_hash=ChatTemplate.from_gguf(language).template_hash,
        quantisation="unknown",
        licence="unknown",
        parents=(),
        noise_class=NoiseClass.FLOAT,
        thresholds=DEFAULT_THRESHOLDS,
        calibration=Calibration(0, 0, tagged_sha256(NOTHING_TAG, b"no calibration")),
        context_tokens=context_tokens,
        replay_profiles=(),
    )


async def arrange_unauditable(
    folder: StateFolder, name: str, price: str | None, port: int, progress: Progress
) -> RoleSpec:
    """Publish the record of a closed model, where it is not published yet, and give the role that sells it."""
    input_price, output_price = (None, None) if price is None else read_price(price)
    async with open_session(folder) as session:
        member = session.member
        await member.ensure_funded(0)
        files = await open_default_model(member, folder, SystemClock(), lambda text: progress(text, 0, 0))
        home = folder.models / "unauditable"
        await asyncio.to_thread(home.mkdir, parents=True, exist_ok=True)
        language = await asyncio.to_thread(write_wire_language, files.source, home / LANGUAGE_NAME)
        storage = await session.storage()
        manifest = await storage.put_file(
            language, lambda done, total: progress(f"storing {LANGUAGE_NAME}", done, total)
        )
        record = await asyncio.to_thread(build_unauditable_record, name, language, manifest, CONTEXT_TOKENS_DEFAULT)
        data = encode_record(record)
        record_id = compute_record_id(data)
        if await member.contracts.catalogue.publisher_of(record_id) is None:
            progress("publishing the record", 0, 0)
            await member.contracts.catalogue.publish(member.sender, data)
    return RoleSpec(
        name=f"provider-{record_id[:4].hex()}",
        kind="provider",
        port=port,
        record=encode_hex(record_id),
        input_price=input_price,
        output_price=output_price,
    )
