"""Asking a gateway as any OpenAI client would, and keeping what a later check needs.

The nonce is drawn here, so that the saved answer shows that the gateway bought exactly the body that was sent.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import msgspec

from deaios.alignment.answer import Answer, decode_part, encode_answer
from deaios.compute.embedding import decode_vector
from deaios.market.batches import BatchProof
from deaios.market.opening import Opening
from deaios.market.question import PLAIN_CHAT, Part
from deaios.node.folder import StateFolder
from deaios.node.status import read_status
from deaios.primitives.encoding import decode_hex, encode_hex
from deaios.primitives.errors import ConfigError, Unavailable
from deaios.primitives.keys import checksum_address
from deaios.runtime.client import HttpClient, InvalidResponse, RefusedByPeer, UnavailablePeer
from deaios.runtime.clock import Clock, SystemClock
from deaios.runtime.dice import Dice, SystemDice
from deaios.runtime.disk import write_atomic

PROOF_TIMEOUT_S = 90.0
PROOF_POLL_S = 0.5
NONCE_HEADER = "X-DeAIOS-Nonce"


class UnavailableProof(Unavailable):
    """The receipt's batch was not on chain in time."""


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Extra(msgspec.Struct, rename="camel"):
    network: str
    client_nonce: str
    opening: dict[str, object]


class _Vector(msgspec.Struct):
    embedding: list[float]


class _PartExtra(_Extra, rename="camel"):
    part: dict[str, object] = {}


class _Vectors(msgspec.Struct):
    data: list[_Vector]
    deaios: _PartExtra


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = msgspec.field(default_factory=list)
    deaios: _Extra | None = None
    error: dict[str, object] | None = None


class _Proof(msgspec.Struct, rename="camel"):
    receipt_digest: str
    proof: dict[str, object]


@dataclass(frozen=True, slots=True)
class Told:
    """An answer as the gateway told it: nothing of it is checked yet."""

    network: bytes
    body: bytes
    client_nonce: bytes
    opening: Opening
    text: str
    part: Part = PLAIN_CHAT

    @property
    def provider(self) -> str:
        """Who answered, as people write addresses."""
        return checksum_address(self.opening.request.provider)


async def ask_gateway(
    http: HttpClient,
    gateway_url: str,
    api_key: str,
    body: dict[str, object],
    dice: Dice,
    on_text: Callable[[str], None],
) -> Told:
    """Stream one chat completion.

    Args:
        http: connection pool.
        gateway_url: base URL without `/v1`.
        api_key: `sk-` key.
        body: chat completion body; `stream` is set here.
        dice: draws the nonce.
        on_text: called with each piece of text as it comes.

    Raises:
        RefusedByPeer, UnavailablePeer: as the gateway or the network says.
        InvalidResponse: the stream ended without the opening.
    """
    data = json.dumps({**body, "stream": True}, ensure_ascii=False).encode()
    nonce = dice.token_bytes(32)
    headers = {"Authorization": f"Bearer {api_key}", NONCE_HEADER: encode_hex(nonce)}
    url = f"{gateway_url}/v1/chat/completions"
    pieces: list[str] = []
    extra: _Extra | None = None
    async for line in http.stream_lines(url, data, headers):
        if not line.startswith(b"data: ") or line == b"data: [DONE]":
            continue
        try:
            chunk = msgspec.json.decode(line[6:], type=_Chunk)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise InvalidResponse(f"{url}: {error}") from error
        if chunk.error is not None:
            raise Unavailable(str(chunk.error.get("message", chunk.error)))
        for choice in chunk.choices:
            if choice.delta.content:
                pieces.append(choice.delta.content)
                on_text(choice.delta.content)
        extra = chunk.deaios or extra
    if extra is None:
        raise InvalidResponse(f"{url}: the answer came without a receipt")
    if decode_hex(extra.client_nonce, 32) != nonce:
        raise InvalidResponse(f"{url}: the gateway used another nonce than the one that was sent")
    return Told(decode_hex(extra.network, 32), data, nonce, Opening.decode_json(extra.opening), "".join(pieces))


async def embed_by_gateway(
    http: HttpClient, gateway_url: str, api_key: str, body: dict[str, object], dice: Dice
) -> tuple[Told, tuple[float, ...]]:
    """The vector of one input.

    Args:
        http: connection pool.
        gateway_url: base URL without `/v1`.
        api_key: `sk-` key.
        body: of the embeddings API, with one input and numbers wanted.
        dice: draws the nonce.

    Raises:
        RefusedByPeer, UnavailablePeer: as the gateway or the network says.
        InvalidResponse: not one vector, or another than the receipt's.
        Invalid: papers that are malformed.
    """
    data = json.dumps(body, ensure_ascii=False).encode()
    nonce = dice.token_bytes(32)
    headers = {"Authorization": f"Bearer {api_key}", NONCE_HEADER: encode_hex(nonce)}
    url = f"{gateway_url}/v1/embeddings"
    found = await http.post_body(url, data, _Vectors, headers)
    extra = found.deaios
    if decode_hex(extra.client_nonce, 32) != nonce:
        raise InvalidResponse(f"{url}: the gateway used another nonce than the one that was sent")
    opening = Opening.decode_json(extra.opening)
    vector = tuple(decode_vector(opening.output_ids).tolist())
    if len(found.data) != 1 or tuple(found.data[0].embedding) != vector:
        raise InvalidResponse(f"{url}: {len(found.data)} vectors came, and not the one that the receipt is of")
    network = decode_hex(extra.network, 32)
    return Told(network, data, nonce, opening, "", decode_part(extra.part)), vector


async def complete_answer(http: HttpClient, gateway_url: str, api_key: str, told: Told, clock: Clock) -> Answer:
    """Wait until the receipt's batch is on chain and add the proof.

    Raises:
        UnavailableProof: not within `PROOF_TIMEOUT_S`.
    """
    counter, provider = told.opening.receipt.counter, encode_hex(told.opening.request.provider)
    url = f"{gateway_url}/v1/receipts/{provider}/{counter}/proof"
    deadline = clock.monotonic_s() + PROOF_TIMEOUT_S
    while True:
        try:
            proof = await http.get_json(url, _Proof, {"Authorization": f"Bearer {api_key}"})
        except (UnavailablePeer, RefusedByPeer) as error:
            if isinstance(error, RefusedByPeer) and error.status != HTTPStatus.NOT_FOUND:
                raise
            if clock.monotonic_s() > deadline:
                raise UnavailableProof(
                    f"receipt {counter} of {told.provider} was not in a batch on chain within {PROOF_TIMEOUT_S:.0f} s"
                ) from error
            await clock.sleep(PROOF_POLL_S)
        else:
            batch = BatchProof.decode_json(proof.proof)
            return Answer(
                told.network,
                told.body,
                told.client_nonce,
                told.opening,
                told.text,
                batch.index,
                batch.path,
                told.part,
            )


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


async def ask_question(
    folder: StateFolder,
    body: dict[str, object],
    *,
    gateway: str | None,
    key: str | None,
    model: str | None,
    save: Path | None,
    on_text: Callable[[str], None],
    on_wait: Callable[[str], None],
) -> tuple[Told, Answer | None]:
    """Ask a gateway, and save the answer with its proof when `save` is given.

    Raises:
        ConfigError: no gateway or key to be found; says where to get them.
    """
    url, secret = await _find_gateway(folder, gateway, key)
    async with HttpClient() as http:
        name = model or await _default_model(http, url, secret)
        told = await ask_gateway(http, url, secret, {"model": name, **body}, SystemDice(), on_text)
        if save is None:
            return told, None
        on_wait("\nwaiting for the receipt's batch on chain")
        answer = await complete_answer(http, url, secret, told, SystemClock())
    write_atomic(save, encode_answer(answer))
    return told, answer


async def embed_text(
    folder: StateFolder,
    text: str,
    *,
    gateway: str | None,
    key: str | None,
    model: str | None,
    save: Path | None,
    on_wait: Callable[[str], None],
) -> tuple[Told, tuple[float, ...], Answer | None]:
    """The vector of a text from a gateway, saved with its proof when `save` is given.

    Raises:
        ConfigError: no gateway or key to be found; says where to get them.
    """
    url, secret = await _find_gateway(folder, gateway, key)
    async with HttpClient() as http:
        name = model or await _default_model(http, url, secret)
        told, vector = await embed_by_gateway(http, url, secret, {"model": name, "input": text}, SystemDice())
        if save is None:
            return told, vector, None
        on_wait("waiting for the receipt's batch on chain")
        answer = await complete_answer(http, url, secret, told, SystemClock())
    write_atomic(save, encode_answer(answer))
    return told, vector, answer


async def _find_gateway(folder: StateFolder, gateway: str | None, key: str | None) -> tuple[str, str]:
    """Base URL without `/v1`, and an API key for it."""
    found = await read_status(folder)
    url = (gateway or found.gateway.url).removesuffix("/").removesuffix("/v1")
    secret = key or found.gateway.api_key
    if not url:
        raise ConfigError(f"no gateway in {folder.root}; start one with `deaios up` or name one with --gateway")
    if not secret:
        raise ConfigError("no API key; pass --key or set DEAIOS_API_KEY")
    return url, secret


async def _default_model(http: HttpClient, url: str, secret: str) -> str:
    models = await http.get_json(f"{url}/v1/models", _Models, {"Authorization": f"Bearer {secret}"})
    if not models.data:
        raise InvalidResponse(f"{url} serves no model")
    return models.data[0].id
