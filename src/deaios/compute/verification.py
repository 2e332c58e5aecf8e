"""The check of an answer: finish, one prefill, the margin and fingerprint of every token; and exact replay.

Invariant: the verdict is a function of ids, params, seed, thresholds and the checker's own logits; nothing a provider
says about itself enters it. One violation is a reason to replay, not yet guilt (docs/spec/protocol.md §4). Knows
nothing of receipts, money or juries.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from deaios.compute.engine import Engine, HiddenEngine, Step, UnavailableEngine, split_evenly
from deaios.compute.fingerprints import LEAF_BYTES, Hidden, measure_distances, split_leaves
from deaios.compute.generation import check_finish
from deaios.compute.masking import MaskState
from deaios.compute.records import Thresholds
from deaios.compute.sampling import Margin, Row, Rule, sample, score, validate_mask_hash, validate_params
from deaios.compute.tokenizer import Tokenizer
from deaios.ledger.structs import FinishReason, Params
from deaios.primitives.errors import Invalid, Unavailable

OUTPUTS_PER_STEP = 128
"""Positions whose logits are held at once: 24 MiB for 49,152 ids, whatever the length of the answer."""

PREFILL_TOKENS = 256
"""Prompt ids per step when an answer is made or replayed; another cut rounds differently, so it belongs to replay."""


class InvalidPrompt(Invalid):
    """A prompt that no engine can run: empty, or with ids outside the vocabulary."""


class UnavailableCheck(Unavailable):
    """The checker's engine cannot hold this answer; says nothing about the provider."""


@dataclass(frozen=True, slots=True)
class Prints:
    """The fingerprints of an answer, and how far from the checker's own an honest one may be.

    Attributes:
        data: leaves, one after another.
        distance_max: of the model's class.
    """

    data: bytes
    distance_max: float


@dataclass(frozen=True, slots=True)
class Violation:
    """One token or fact that an honest provider could not have produced.

    Attributes:
        position: index into the output ids, from 0.
        margin: in logits; infinity where no logit could explain it.
        rule: what was broken.
        detail: the rule and both values, for people.
    """

    position: int
    margin: float
    rule: Rule
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found. `ok` means that the whole answer was checked and nothing was broken.

    Attributes:
        tokens_checked: output ids.
        margins: one for each of them, in logits.
        violations: in the order of the output.
        distances: of the fingerprints, one for each of them, where there were any.
        replay: what exact replay gave, where it was run beside; the violations know nothing of it.
    """

    tokens_checked: int
    margins: tuple[float, ...]
    violations: tuple[Violation, ...]
    distances: tuple[float, ...] = ()
    replay: "Replay | None" = None

    @property
    def ok(self) -> bool:
        """Was nothing broken?"""
        return not self.violations

    @property
    def margin_max(self) -> float:
        """The largest margin, in logits; 0.0 when there was none."""
        return max(self.margins, default=0.0)

    @property
    def distance_max(self) -> float:
        """The largest distance of a fingerprint; 0.0 when there was none."""
        return max(self.distances, default=0.0)

    @property
    def exact_count(self) -> int:
        """Tokens that are the checker's own pick."""
        return sum(margin == 0.0 for margin in self.margins)


@dataclass(frozen=True, slots=True)
class Replay:
    """Whether sampling again gave the same; `first_difference` indexes the output, None when all are equal."""

    equal: bool
    first_difference: int | None


def verify_output(
    engine: Engine,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    params: Params,
    seed: bytes,
    finish_reason: FinishReason,
    stop_index: int,
    thresholds: Thresholds,
    tokenizer: Tokenizer,
    sequence: int = 0,
    mask: MaskState | None = None,
    prints: Prints | None = None,
) -> Report:
    """Check an answer with one prefill, its fingerprints too. The engine's sequence is emptied before and after.

    Where there are masks, tokens after one that its mask forbids are not checked: no mask is defined for them.

    Args:
        engine: the checker's.
        prompt_ids: of the ask.
        output_ids: as the receipt covers them.
        params: of the ask.
        seed: of the ask.
        finish_reason: as the receipt says.
        stop_index: likewise.
        thresholds: of the model record.
        tokenizer: of the model.
        sequence: of the engine, which is used.
        mask: a new one, where the params name one.
        prints: what the receipt's fingerprint root names, where it names anything.

    Raises:
        InvalidParams: the params are outside the protocol's bounds, or name another mask.
        InvalidFingerprints: leaves that are no fingerprints of so many ids.
        InvalidConstraint: the constraint has no mask at some place; nothing the provider did.
        InvalidPrompt: nothing the provider did; the prompt itself cannot be run.
        UnavailableCheck: the answer does not fit the checker's engine.
        InvalidLogits: the checker's engine gave numbers that are not finite.
        UnavailableEngine: the checker's engine failed, or shows no hidden states where there are fingerprints.
    """
    validate_params(params)
    validate_mask_hash(params, None if mask is None else mask.mask_hash)
    _validate_fit(engine, prompt_ids, min(len(output_ids), params.max_tokens))
    if prints is not None:
        split_leaves(prints.data, len(output_ids))
    broken = _find_broken_shape(engine, output_ids, params)
    wrong_finish = check_finish(output_ids, params, tokenizer, finish_reason, stop_index)
    if wrong_finish is not None:
        broken.append(Violation(max(len(output_ids) - 1, 0), float("inf"), Rule.FINISH, wrong_finish))
    if any(item.rule in (Rule.VOCABULARY, Rule.LENGTH) for item in broken):
        return Report(0, (), tuple(broken))
    margins: list[float] = []
    distances: list[float] = []
    with closing(_prefill(engine, prompt_ids, output_ids, sequence, with_hidden=prints is not None)) as rows:
        for place, (row, hidden) in enumerate(rows):
            if prints is not None and hidden is not None:
                distances.append(_measure(prints, place, hidden))
                if not distances[-1] <= prints.distance_max:  # a distance that is no number exceeds everything
                    detail = f"distance {distances[-1]:.6f} exceeds {prints.distance_max:.6f} ({Rule.FINGERPRINT})"
                    broken.append(Violation(place, distances[-1], Rule.FINGERPRINT, detail))
            token, allowed = output_ids[place], None if mask is None else mask.mask()
            found = score(row, params, seed, len(prompt_ids) + place, token, thresholds.epsilon, allowed)
            margins.append(found.margin)
            if found.margin > thresholds.margin:
                broken.append(Violation(place, found.margin, found.rule, _describe(found, token, thresholds)))
            if found.rule is Rule.MASK:
                break
            if mask is not None:
                mask.accept(token)
    broken.sort(key=lambda item: item.position)
    return Report(len(margins), tuple(margins), tuple(broken), tuple(distances))


def _measure(prints: Prints, place: int, hidden: Hidden) -> float:
    leaf = prints.data[place * LEAF_BYTES : (place + 1) * LEAF_BYTES]
    return float(measure_distances(leaf, hidden[None])[0])


def require_hidden(engine: Engine) -> HiddenEngine:
    """The engine as one that fingerprints can be made on.

    Raises:
        UnavailableEngine: it shows no hidden states.
    """
    if not isinstance(engine, HiddenEngine):
        raise UnavailableEngine(f"the {engine.profile.name} engine shows no hidden states; choose llama or numpy")
    return engine


def cut_prompt(prompt_ids: Sequence[int], *, is_printed: bool) -> list[tuple[int, int]]:
    """The steps in which an answer's prompt is read, as (first, last): the last one gives the first id.

    Where there are fingerprints, the last id is read alone: engines then make logits of every id in its step.
    """
    if not is_printed:
        return split_evenly(len(prompt_ids), PREFILL_TOKENS)
    silent = split_evenly(len(prompt_ids) - 1, PREFILL_TOKENS) if len(prompt_ids) > 1 else []
    return [*silent, (len(prompt_ids) - 1, len(prompt_ids))]


def _describe(found: Margin, token: int, thresholds: Thresholds) -> str:
    if found.rule is Rule.MASK:
        return f"the constraint forbids id {token} at this place"
    return f"margin {found.margin:.6f} logits exceeds {thresholds.margin:.6f} ({found.rule})"


def replay_output(
    engine: Engine,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    params: Params,
    seed: bytes,
    sequence: int = 0,
    mask: MaskState | None = None,
    prints: Prints | None = None,
    *,
    is_printed: bool = False,
) -> Replay:
    """Sample the answer again on a provider's schedule, prompt in even pieces and then id by id, and compare.

    Where there are fingerprints, these have to be the replay's own too, within the class's distance. `is_printed` is
    whether the provider owed any: it reads prompts in other steps then (`cut_prompt`).

    Equal ids acquit. A difference convicts only on an engine profile that the model record allow-lists.

    Raises:
        InvalidParams, InvalidConstraint, InvalidPrompt, UnavailableCheck, InvalidLogits, InvalidFingerprints,
            UnavailableEngine: as in `verify_output`.
    """
    validate_params(params)
    validate_mask_hash(params, None if mask is None else mask.mask_hash)
    _validate_fit(engine, prompt_ids, min(len(output_ids), params.max_tokens))
    broken = _find_broken_shape(engine, output_ids, params)
    if prints is not None:
        split_leaves(prints.data, len(output_ids))
    if broken:
        return Replay(False, min(item.position for item in broken))
    engine.forget(sequence)
    try:
        *silent, (first, last) = cut_prompt(prompt_ids, is_printed=is_printed or prints is not None)
        for start, end in silent:
            engine.decode([Step(sequence, start, tuple(prompt_ids[start:end]), 0)])
        step = Step(sequence, first, tuple(prompt_ids[first:last]), 1)
        for place, token in enumerate(output_ids):
            row, hidden = _decode_one(engine, step, with_hidden=prints is not None)
            allowed = None if mask is None else mask.mask()
            if sample(row, params, seed, len(prompt_ids) + place, allowed) != token:
                return Replay(False, place)
            if prints is not None and hidden is not None and not _measure(prints, place, hidden) <= prints.distance_max:
                return Replay(False, place)
            if mask is not None:
                mask.accept(token)
            step = Step(sequence, len(prompt_ids) + place, (token,), 1)
    finally:
        engine.forget(sequence)
    return Replay(True, None)


def _decode_one(engine: Engine, step: Step, *, with_hidden: bool) -> tuple[Row, Hidden | None]:
    if not with_hidden:
        return engine.decode([step])[0][0], None
    ((rows, states),) = require_hidden(engine).decode_hidden([step])
    return rows[0], states[0]


def _validate_fit(engine: Engine, prompt_ids: Sequence[int], output_count: int) -> None:
    if not prompt_ids:
        raise InvalidPrompt("the prompt has no ids")
    if len(prompt_ids) + output_count - 1 > engine.context_tokens:  # the last id is never read back
        raise UnavailableCheck(
            f"{len(prompt_ids)} prompt and {output_count} output ids exceed this engine's context of "
            f"{engine.context_tokens}; open it with a larger one"
        )
    if min(prompt_ids) < 0 or max(prompt_ids) >= engine.vocabulary_size:
        raise InvalidPrompt(
            f"prompt id {min(prompt_ids)} or {max(prompt_ids)} is outside the vocabulary of {engine.vocabulary_size}"
        )


def _find_broken_shape(engine: Engine, output_ids: Sequence[int], params: Params) -> list[Violation]:
    broken = []
    if len(output_ids) > params.max_tokens:
        detail = f"{len(output_ids)} ids exceed max_tokens {params.max_tokens}"
        broken.append(Violation(params.max_tokens, float("inf"), Rule.LENGTH, detail))
    for place, token in enumerate(output_ids):
        if not 0 <= token < engine.vocabulary_size:
            detail = f"id {token} is outside the vocabulary of {engine.vocabulary_size}"
            return [*broken, Violation(place, float("inf"), Rule.VOCABULARY, detail)]
    return broken


def _prefill(
    engine: Engine, prompt_ids: Sequence[int], output_ids: Sequence[int], sequence: int, *, with_hidden: bool
) -> Generator[tuple[Row, Hidden | None], None, None]:
    """Logits and hidden state before each output id, from one pass over prompt and output in bounded pieces."""
    read = (*prompt_ids, *output_ids[:-1])
    done, position = 0, 0
    engine.forget(sequence)
    try:
        if with_hidden and output_ids and len(prompt_ids) > 1:
            position = len(prompt_ids) - 1
            engine.decode([Step(sequence, 0, read[:position], 0)])
        while done < len(output_ids):
            outputs = min(OUTPUTS_PER_STEP, len(output_ids) - done)
            end = len(prompt_ids) - 1 + done + outputs
            step = Step(sequence, position, read[position:end], outputs)
            if with_hidden:
                ((rows, states),) = require_hidden(engine).decode_hidden([step])
                yield from zip(rows, states, strict=True)
            else:
                (rows,) = engine.decode([step])
                yield from ((row, None) for row in rows)
            done, position = done + outputs, end
    finally:
        engine.forget(sequence)
