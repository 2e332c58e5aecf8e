"""A model small enough for a simulation: logits are a hash of the ids so far, equal on every simulated machine.

Sampling, the check of an answer and exact replay are the real ones; only the numbers behind them are toys. Token ids
are bytes, and 256 ends an answer.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from deaios.compute.engine import EngineProfile, Step, validate_steps
from deaios.compute.fingerprints import encode_fingerprints
from deaios.compute.generation import Generation
from deaios.compute.masking import MaskState
from deaios.compute.records import (
    DEFAULT_THRESHOLDS,
    Calibration,
    ModelRecord,
    NoiseClass,
    RecordFile,
    Thresholds,
    encode_record,
)
from deaios.compute.records import record_id as compute_record_id
from deaios.compute.tokenizer import Tokenizer
from deaios.compute.tools import Tool
from deaios.compute.verification import Prints, Replay, Report, replay_output, verify_output
from deaios.ledger.structs import FinishReason, Params
from deaios.market.ports import Piece
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import ZERO32, sha256

END = 256
VOCABULARY = END + 1
CONTEXT_TOKENS = 512
SHARPNESS = 12.0
"""Spread of the logits, so that some tokens are likely and most are not."""
END_HANDICAP = 4.0
"""Logits taken from the end, so that answers have some length."""
ROWS_KEPT = 8192
TOKEN_S = 0.02
"""Virtual time per token."""
MODEL_NAME = "toy-bytes"

Row = NDArray[np.float32]


class ByteTokenizer:
    """Ids 0 to 255 are bytes, 256 ends an answer; the part of `Tokenizer` that answers need."""

    end_ids = frozenset({END})
    vocabulary_size = VOCABULARY

    def get_bytes(self, token: int) -> bytes:
        """The bytes of an id."""
        if not 0 <= token < VOCABULARY:
            raise Invalid(f"token id {token} is outside the vocabulary of {VOCABULARY}")
        return b"" if token == END else bytes((token,))

    def get_label(self, token: int) -> str:
        """How an id is shown."""
        return "<end>" if token == END else self.get_bytes(token).decode("utf-8", "replace")


TOKENIZER: Tokenizer = ByteTokenizer()  # type: ignore[assignment] # has what answers use of a tokenizer, no GGUF file


def render(messages: Sequence[Mapping[str, object]], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
    """A chat as prompt ids."""
    assert not tools, "nobody shows tools to a toy"
    return tuple("".join(f"{message['role']}:{message['content']}\n" for message in messages).encode())


class Weights:
    """Which numbers a model gives. Other weights are another model; `blend` makes a worn copy of the right one."""

    def __init__(self, name: str = "right", *, blend: float = 0.0) -> None:
        self._salt = name.encode()
        self._blend = np.float32(blend)
        self._rows: OrderedDict[bytes, Row] = OrderedDict()

    def row(self, digest: bytes) -> Row:
        """Logits after the ids that a digest stands for."""
        row = self._rows.get(digest)
        if row is None:
            row = _draw_row(b"right" if self._blend else self._salt, digest)
            if self._blend:
                row = row + self._blend * _draw_row(self._salt, digest)
            self._rows[digest] = row
            if len(self._rows) > ROWS_KEPT:
                self._rows.popitem(last=False)
        return row


def _draw_row(salt: bytes, digest: bytes) -> Row:
    draws = np.frombuffer(hashlib.shake_128(salt + digest).digest(4 * VOCABULARY), "<u4")
    row = (draws * np.float32(SHARPNESS / (1 << 32))).astype(np.float32)
    row[END] -= END_HANDICAP
    return row


RIGHT = Weights()
SMALLER = Weights("smaller")
STALE = Weights("stale", blend=0.5)
REQUANTISED = Weights("requantised", blend=0.2)


def extend(digest: bytes, token: int) -> bytes:
    """The digest of one id more."""
    return hashlib.sha256(digest + token.to_bytes(4)).digest()


class ToyEngine:
    """One sequence over some weights, as the `Engine` protocol wants it."""

    profile = EngineProfile("toy", "1", NoiseClass.FLOAT)
    vocabulary_size = VOCABULARY
    context_tokens = CONTEXT_TOKENS
    tokens_max = CONTEXT_TOKENS
    sequences_max = 1

    def __init__(self, weights: Weights = RIGHT) -> None:
        self._weights = weights
        self._digest = b""
        self._held = 0

    def decode(self, steps: Sequence[Step]) -> list[Row]:
        """As the protocol."""
        validate_steps(self, [self._held], steps)
        results = []
        for step in steps:
            rows = []
            for token in step.ids:
                self._digest = extend(self._digest, token)
                rows.append(self._weights.row(self._digest))
            self._held += len(step.ids)
            last = rows[len(rows) - step.outputs :]
            results.append(np.array(last, np.float32).reshape(step.outputs, VOCABULARY))
        return results

    def decode_hidden(self, steps: Sequence[Step]) -> list[tuple[Row, Row]]:
        """As the protocol; the logits are all that this model has inside."""
        return [(rows, rows) for rows in self.decode(steps)]

    def forget(self, _sequence: int) -> None:
        """As the protocol."""
        self._digest, self._held = b"", 0

    def close(self) -> None:
        """Nothing to free."""


PROFILE = ToyEngine.profile.digest()


def build_record() -> ModelRecord:
    """The toy model's record."""
    return ModelRecord(
        name=MODEL_NAME,
        files=(RecordFile("model.toy", sha256(b"toy"), 3, ZERO32),),
        model_root=sha256(b"toy model"),
        tensors_root=sha256(b"toy tensors"),
        serving="as-is/1",
        tokenizer_hash=sha256(b"bytes"),
        template_hash=sha256(b"template"),
        quantisation="F32",
        licence="Apache-2.0",
        parents=(),
        noise_class=NoiseClass.FLOAT,
        thresholds=DEFAULT_THRESHOLDS,
        calibration=Calibration(0, 0, ZERO32),
        context_tokens=CONTEXT_TOKENS,
        replay_profiles=(PROFILE,),
    )


RECORD = build_record()
THRESHOLDS = RECORD.thresholds
RECORD_ID = compute_record_id(encode_record(RECORD))


class ToyService:
    """What a recheck asks of an engine's service; work is instant."""

    def __init__(self) -> None:
        self.engine = ToyEngine()

    async def verify(
        self,
        prompt_ids: Sequence[int],
        output_ids: Sequence[int],
        params: Params,
        seed: bytes,
        finish: FinishReason,
        stop_index: int,
        thresholds: Thresholds,
        tokenizer: Tokenizer,
        mask: MaskState | None,
        prints: Prints | None,
    ) -> Report:
        """One prefill."""
        return verify_output(
            self.engine,
            prompt_ids,
            output_ids,
            params,
            seed,
            finish,
            stop_index,
            thresholds,
            tokenizer,
            mask=mask,
            prints=prints,
        )

    async def replay(
        self,
        prompt_ids: Sequence[int],
        output_ids: Sequence[int],
        params: Params,
        seed: bytes,
        mask: MaskState | None,
        prints: Prints | None,
        *,
        is_printed: bool,
    ) -> Replay:
        """Exact replay."""
        return replay_output(
            self.engine, prompt_ids, output_ids, params, seed, mask=mask, prints=prints, is_printed=is_printed
        )


async def generate(
    prompt_ids: tuple[int, ...],
    params: Params,
    seed: bytes,
    *,
    weights: Weights = RIGHT,
    token_s: float = TOKEN_S,
    hidden_ids: tuple[int, ...] = (),
    prefix: tuple[int, ...] = (),
    is_printed: bool = False,
) -> AsyncIterator[Piece]:
    """An answer, id by id, in virtual time; a cheat puts `hidden_ids` before the prompt.

    A prefix is checked as the live engine's service does, in the time of one token.
    """
    machine = Generation(len(prompt_ids), params, seed, TOKENIZER)
    digest = b""
    for token in (*hidden_ids, *prompt_ids):
        digest = extend(digest, token)
    for place in range(params.max_tokens):
        if place == 0 or place >= len(prefix):
            await asyncio.sleep(token_s)
        row = weights.row(digest)
        sampled = machine.take_over(row, prefix[place], THRESHOLDS) if place < len(prefix) else machine.offer(row)
        digest = extend(digest, sampled.token)
        leaf = encode_fingerprints(row[None]) if is_printed else b""
        yield Piece(sampled.token, sampled.finish, sampled.stop_index, leaf=leaf)
        if sampled.finish is not None:
            return
