"""A toy model with real sampling: logits are a hash of the ids so far, so that every weight counts and nothing is slow.

Everything above the logits is the real thing: the engine's service, the seeded sampler, the margin check, exact replay.
"""

import hashlib
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import numpy as np

from deaios.alignment.recheck.service import EngineRecheck
from deaios.compute.engine import EngineProfile, validate_steps
from deaios.compute.records import (
    DEFAULT_THRESHOLDS,
    Calibration,
    ModelRecord,
    NoiseClass,
    RecordFile,
    encode_record,
    record_id,
)
from deaios.compute.service import EngineService
from deaios.market.ports import Piece
from deaios.market.question import context_of
from deaios.primitives.hashing import sha256

VOCABULARY = 64
END = 0
CONTEXT_TOKENS = 1000
NAME = "toy"
PROFILE = EngineProfile("toy", "1", "F")
TEMPLATE_HASH = sha256(b"template")
RECORD = ModelRecord(
    name=NAME,
    files=(RecordFile("toy.gguf", sha256(b"file"), 1, sha256(b"manifest")),),
    model_root=sha256(b"model"),
    tensors_root=sha256(b"tensors"),
    serving="f16-expansion/1",
    tokenizer_hash=sha256(b"tokenizer"),
    template_hash=TEMPLATE_HASH,
    quantisation="F16",
    licence="Apache-2.0",
    parents=(),
    noise_class=NoiseClass.FLOAT,
    thresholds=DEFAULT_THRESHOLDS,
    calibration=Calibration(0, 0, sha256(b"calibration")),
    context_tokens=CONTEXT_TOKENS,
    replay_profiles=(PROFILE.digest(),),
)
RECORD_ID = record_id(encode_record(RECORD))


class ToyTokenizer:
    """Every id above 0 is one character; 0 ends an answer."""

    end_ids = frozenset({END})
    vocabulary_size = VOCABULARY
    tokenizer_hash = RECORD.tokenizer_hash

    def get_bytes(self, token):
        return b"" if token == END else bytes([64 + token])


TOKENIZER = ToyTokenizer()


def render_messages(messages, tools=()):
    """Prompt ids of messages: one per character, below the vocabulary's size."""
    text = "".join(message["content"] for message in messages)
    return tuple(1 + byte % (VOCABULARY - 1) for byte in text.encode())


class ToyTemplate:
    """What a check needs of a chat template."""

    template_hash = TEMPLATE_HASH

    def render_ids(self, messages, tokenizer, tools=()):
        return render_messages(messages)


def render_chat(chat):
    """What an auditor is told about its model: a chat's prompt ids and context."""
    return render_messages(chat.message_objects()), context_of(chat, TEMPLATE_HASH)


@dataclass
class ToyEngine:
    """Logits of named weights; `round_to` is what fewer bits do to them, `memory` how many ids a smaller model sees."""

    weights: str = "published"
    round_to: float = 0.0
    memory: int | None = None
    held: list = field(default_factory=lambda: [[] for _ in range(8)])

    profile = PROFILE
    vocabulary_size = VOCABULARY
    context_tokens = CONTEXT_TOKENS
    sequences_max = 8
    tokens_max = 8 * CONTEXT_TOKENS

    def decode(self, steps):
        validate_steps(self, [len(ids) for ids in self.held], steps)
        answers = []
        for step in steps:
            rows = []
            for token in step.ids:
                self.held[step.sequence].append(token)
                rows.append(self._row(tuple(self.held[step.sequence])))
            answers.append(np.array(rows[len(rows) - step.outputs :], np.float32).reshape(step.outputs, VOCABULARY))
        return answers

    def decode_hidden(self, steps):
        return [(rows, rows) for rows in self.decode(steps)]

    def _row(self, ids):
        seen = ids if self.memory is None else ids[-self.memory :]
        seed = hashlib.sha256(f"{self.weights} {seen}".encode()).digest()
        row = np.random.default_rng(int.from_bytes(seed[:8])).standard_normal(VOCABULARY) * 2.0
        row[END] -= 4.0
        return np.round(row / self.round_to) * self.round_to if self.round_to else row

    def forget(self, sequence):
        self.held[sequence] = []

    def close(self):
        """Nothing is held outside this process's memory."""


@dataclass(frozen=True)
class Machine:
    """One machine that runs the model: it generates for a provider or rechecks for an auditor."""

    service: EngineService

    @classmethod
    def start(cls, **weights):
        return cls(EngineService(ToyEngine(**weights)))

    @property
    def recheck(self):
        return EngineRecheck(self.service, RECORD, TOKENIZER)

    async def generate(self, wanted):
        """What an honest provider does."""
        stream = self.service.generate(
            wanted.prompt_ids,
            wanted.params,
            wanted.seed,
            TOKENIZER,
            wanted.logprobs,
            is_printed=wanted.is_printed,
            is_exact=wanted.is_exact,
        )
        async with aclosing(stream):
            async for sampled in stream:
                yield Piece(sampled.token, sampled.finish, sampled.stop_index, sampled.logprobs, leaf=sampled.leaf)

    async def close(self):
        await self.service.close()


def with_temperature(params, temperature_milli):
    """The parameters that a cheat serves in place of those ordered."""
    return replace(params, temperature_milli=temperature_milli)
