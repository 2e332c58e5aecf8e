"""Re-execution of one purchase on an engine of this process: the margins of a check, and exact replay.

The evidence is taken as validated; whatever it holds, the outcome is a report, a truth value or a typed error.
"""

import math
from dataclasses import replace

from deaios.alignment.evidence import Evidence, finish_of, prints_of
from deaios.compute.embedding import encode_vector, is_embedding
from deaios.compute.embedding_check import compare_vector
from deaios.compute.fingerprints import owes_fingerprints
from deaios.compute.generation import check_finish
from deaios.compute.masks.service import MaskService
from deaios.compute.records import ModelRecord, NoiseClass
from deaios.compute.sampling import Rule, seed_of
from deaios.compute.service import EngineService
from deaios.compute.tokenizer import Tokenizer
from deaios.compute.verification import Report, Violation
from deaios.ledger.structs import FinishReason


class EngineRecheck:
    """Checks purchases of one model."""

    def __init__(self, service: EngineService, record: ModelRecord, tokenizer: Tokenizer) -> None:
        self._service = service
        self._record = record
        self._tokenizer = tokenizer
        self._masks = MaskService(tokenizer)

    async def check(self, evidence: Evidence) -> Report:
        """One prefill over prompt and output; margin and fingerprint of every token, and the finish."""
        opening = evidence.opening
        if is_embedding(opening.ask.params):
            return await self._check_vector(evidence)
        finish = finish_of(opening.receipt)
        if finish is None:
            last = max(len(opening.output_ids) - 1, 0)
            detail = f"finish reason {opening.receipt.finish_reason} is not known"
            return Report(0, (), (Violation(last, math.inf, Rule.FINISH, detail),))
        mask = await self._masks.open(opening.constraint, opening.ask.params.mask_hash)
        return await self._service.verify(
            evidence.prompt_ids,
            opening.output_ids,
            opening.ask.params,
            seed_of(opening.ask),
            finish,
            opening.receipt.stop_index,
            self._record.thresholds,
            self._tokenizer,
            mask,
            prints_of(opening, self._record.noise_class),
        )

    async def _check_vector(self, evidence: Evidence) -> Report:
        """One forward pass over the input; the distance of the vector, and how its purchase ended."""
        wrong = _find_vector_fault(evidence)
        if wrong is not None:
            return Report(0, (), (Violation(0, math.inf, Rule.FINISH, wrong),))
        if not evidence.opening.output_ids:
            return Report(0, (), ())
        ours = await self._service.embed(evidence.prompt_ids)
        report = compare_vector(ours, evidence.opening.output_ids, self._record.noise_class)
        if self._record.noise_class is NoiseClass.FLOAT:
            return report
        # How far honest engines of the other classes are from each other was not measured: no stake rests on that.
        return replace(report, violations=tuple(v for v in report.violations if v.margin == math.inf))

    async def _replay_vector(self, evidence: Evidence) -> bool | None:
        if _find_vector_fault(evidence) is not None:
            return False
        if self._service.engine.profile.digest() not in self._record.replay_profiles:
            return None
        words = evidence.opening.output_ids
        return not words or encode_vector(await self._service.embed(evidence.prompt_ids)) == words

    async def replay(self, evidence: Evidence) -> bool | None:
        """Exact replay where this engine's profile is on the record's list; None elsewhere.

        Fingerprints, where there are any, have to be the replay's own, within the class's distance. The end belongs to
        what is replayed: it follows from the ids by rules without arithmetic, on every machine.
        """
        opening = evidence.opening
        if is_embedding(opening.ask.params):
            return await self._replay_vector(evidence)
        params, finish = opening.ask.params, finish_of(opening.receipt)
        if finish is None:
            return False
        wrong = check_finish(opening.output_ids, params, self._tokenizer, finish, opening.receipt.stop_index)
        if wrong is not None:
            return False
        if self._service.engine.profile.digest() not in self._record.replay_profiles:
            return None
        mask = await self._masks.open(opening.constraint, params.mask_hash)
        seed = seed_of(opening.ask)
        replay = await self._service.replay(
            evidence.prompt_ids,
            opening.output_ids,
            params,
            seed,
            mask,
            prints_of(opening, self._record.noise_class),
            is_printed=owes_fingerprints(opening.ask),
        )
        return replay.equal


def _find_vector_fault(evidence: Evidence) -> str | None:
    """What is wrong with how a vector ended: it is whole, or its purchase ended early and there is none."""
    receipt, words = evidence.opening.receipt, evidence.opening.output_ids
    whole, early = (FinishReason.LENGTH,), (FinishReason.CANCELLED, FinishReason.FAILED)
    if receipt.stop_index or receipt.finish_reason not in (whole if words else early):
        return f"{len(words)} words of a vector end by reason {receipt.finish_reason} and index {receipt.stop_index}"
    return None
