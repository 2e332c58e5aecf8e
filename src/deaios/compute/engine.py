"""What every engine offers: logits at every position that is asked for, for several sequences at once.

Invariant: a step continues its sequence exactly where it ended, so that what an engine holds is always the ids it was
given, in order. Knows nothing of sampling, requests or money.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from deaios.primitives.encoding import Json, encode_canonical_json
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.primitives.hashing import tagged_sha256

PROFILE_TAG = "deaios/engine-profile/1"


class InvalidStep(Invalid):
    """Ids, a position or a sequence that the engine cannot take."""


class UnavailableEngine(Unavailable):
    """The engine cannot be loaded, or failed while running. The message names the fix where there is one."""


class RefusedEngine(Refused):
    """The engine computes other numbers than this model should give; it may not serve or judge."""


@dataclass(frozen=True, slots=True)
class Step:
    """Ids that continue one sequence.

    Attributes:
        sequence: which sequence, 0 up to the engine's `sequences_max`.
        position: number of ids that the sequence holds already.
        ids: the next token ids, at least one.
        outputs: logits are wanted for the last so many ids.
    """

    sequence: int
    position: int
    ids: tuple[int, ...]
    outputs: int


@dataclass(frozen=True)
class EngineProfile:
    """What makes two engines give the same numbers; a receipt carries its digest.

    Attributes:
        name: `llama` or `numpy`.
        build: the exact build of the arithmetic.
        noise_class: `F` for float activations, `Q` for integer activations.
        details: everything else that changes the numbers.
    """

    name: str
    build: str
    noise_class: str
    details: Mapping[str, str | int | bool] = field(default_factory=dict)

    def digest(self) -> bytes:
        """32 bytes that name the profile."""
        record: dict[str, Json] = {
            "build": self.build,
            "details": dict(self.details),
            "name": self.name,
            "noiseClass": self.noise_class,
        }
        return tagged_sha256(PROFILE_TAG, encode_canonical_json(record))


class Engine(Protocol):
    """A loaded model. Not safe for two threads at once."""

    profile: EngineProfile
    vocabulary_size: int
    context_tokens: int
    """Most ids that one sequence may hold."""
    sequences_max: int
    tokens_max: int
    """Most ids that all sequences together may hold."""

    def decode(self, steps: Sequence[Step]) -> list[NDArray[np.float32]]:
        """Run steps of different sequences together.

        Returns:
            one array `(outputs, vocabulary) float32` per step, in the order of the steps.

        Raises:
            InvalidStep: a step breaks a rule; nothing was run.
            UnavailableEngine: the engine failed; its sequences are lost.
        """

    def forget(self, sequence: int) -> None:
        """Empty a sequence."""

    def close(self) -> None:
        """Free everything; the engine cannot be used afterwards. Closing twice is harmless."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a sequence held, outside its engine; only the engine that made it can read it.

    Attributes:
        tokens: ids it stands for.
        size_bytes: of memory that it takes.
        state: the engine's own; nobody else looks inside.
    """

    tokens: int
    size_bytes: int
    state: object


@runtime_checkable
class SavingEngine(Engine, Protocol):
    """An engine whose sequences can be kept outside it and taken up again, bit for bit, in any sequence."""

    def save(self, sequence: int) -> Snapshot:
        """Copy what a sequence holds; the sequence keeps it.

        Raises:
            UnavailableEngine: the engine failed; its sequences are lost.
        """

    def restore(self, sequence: int, snapshot: Snapshot, tokens: int) -> bool:
        """Let an empty sequence hold the first `tokens` ids of a snapshot.

        Returns:
            False when this engine cannot continue from there, or has no room; the sequence is then still empty.
        """


@runtime_checkable
class EmbeddingEngine(Engine, Protocol):
    """An engine that shows what its last layer makes of each id."""

    width: int
    """Numbers per id."""

    def hidden(self, step: Step) -> NDArray[np.float32]:
        """Run one step; its `outputs` count for nothing.

        Returns:
            `(ids, width) float32`: the last hidden states of all its ids, after the final norm.

        Raises:
            InvalidStep, UnavailableEngine: as `decode`.
        """


@runtime_checkable
class HiddenEngine(Engine, Protocol):
    """An engine that shows, beside logits, what its last layer made of the ids that they follow."""

    def decode_hidden(self, steps: Sequence[Step]) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """As `decode`, with the hidden states after the final norm that the logits were made of.

        Long prompts may be cut otherwise than by `decode`, and then round otherwise; single ids give the same bits.

        Returns:
            `(outputs, vocabulary)` and `(outputs, width)`, float32, for each step in the order of the steps.

        Raises:
            InvalidStep, UnavailableEngine: as `decode`.
        """


def validate_steps(engine: Engine, held: Sequence[int], steps: Sequence[Step]) -> None:
    """Check steps against what the sequences hold.

    Args:
        engine: for its bounds.
        held: ids held by each sequence.
        steps: what is asked.

    Raises:
        InvalidStep: the first rule that is broken.
    """
    seen: set[int] = set()
    for step in steps:
        if not 0 <= step.sequence < engine.sequences_max or step.sequence in seen:
            raise InvalidStep(
                f"sequence {step.sequence} is outside 0..{engine.sequences_max - 1} or appears twice in one batch"
            )
        seen.add(step.sequence)
        if step.position != held[step.sequence]:
            raise InvalidStep(
                f"sequence {step.sequence} holds {held[step.sequence]} ids, the step starts at {step.position}"
            )
        if not step.ids or not 0 <= step.outputs <= len(step.ids):
            raise InvalidStep(f"{step.outputs} outputs of {len(step.ids)} ids; at least one id, at most all outputs")
        if step.position + len(step.ids) > engine.context_tokens:
            raise InvalidStep(
                f"sequence of {step.position + len(step.ids)} ids exceeds the context of {engine.context_tokens}"
            )
        if min(step.ids) < 0 or max(step.ids) >= engine.vocabulary_size:
            raise InvalidStep(
                f"token id {min(step.ids)} or {max(step.ids)} is outside the vocabulary of {engine.vocabulary_size}"
            )
    total = sum(held) + sum(len(step.ids) for step in steps)
    if total > engine.tokens_max:
        raise InvalidStep(f"{total} ids in all sequences exceed the engine's {engine.tokens_max}")


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of one step: ids `first` up to `last` of step `index`, logits for the final `outputs` of them."""

    index: int
    first: int
    last: int
    outputs: int


def plan_batches(
    steps: Sequence[Step], tokens_max: int, outputs_max: int, *, part_max: int | None = None, order: Sequence[int] = ()
) -> list[list[Part]]:
    """Cut steps into batches, long steps into parts of nearly equal size.

    Equal parts matter: float kernels for one to four rows round otherwise than those for many rows, so a prompt whose
    last part were a single id would not replay bit for bit under another batch size.

    Args:
        steps: what is asked.
        tokens_max: most ids of one batch.
        outputs_max: most rows of logits of one batch.
        part_max: most ids of one part; as many as fit a batch when left out.
        order: indices of all steps in the order in which they enter batches; as they come when left out.
    """
    batches: list[list[Part]] = []
    tokens = outputs = 0
    for index in order or range(len(steps)):
        for part in _cut_step(index, steps[index], part_max or tokens_max, outputs_max):
            size = part.last - part.first
            # Parts of one step never share a batch, where the library would cut them at a place of its own.
            is_next = bool(batches) and batches[-1][-1].index == index
            if not batches or is_next or tokens + size > tokens_max or outputs + part.outputs > outputs_max:
                batches.append([])
                tokens = outputs = 0
            batches[-1].append(part)
            tokens += size
            outputs += part.outputs
    return batches


def split_evenly(size: int, size_max: int) -> list[tuple[int, int]]:
    """Cut `size` ids into the fewest parts of at most `size_max`, as (first, last) of nearly equal size."""
    return _cut(size, -(-size // size_max))


def _cut(size: int, count: int) -> list[tuple[int, int]]:
    return list(pairwise(size * part // count for part in range(count + 1)))


def _cut_step(index: int, step: Step, tokens_max: int, outputs_max: int) -> list[Part]:
    size = len(step.ids)
    silent = size - step.outputs
    count = max(-(-size // tokens_max), -(-step.outputs // outputs_max))
    while True:
        parts = [Part(index, first, last, max(0, last - max(first, silent))) for first, last in _cut(size, count)]
        if all(part.outputs <= outputs_max for part in parts):
            return parts
        count += 1  # ends: with one id per part every part has at most one output
