"""Re-execution of one purchase on an engine of this process: the margins of a check, and exact replay.

The evidence is taken as validated; whatever it holds, the outcome is a report, a truth value or a typed error.
"""

import math

from deaios.alignment.evidence import Evidence, finish_of, prints_of
from deaios.compute.fingerprints import owes_fingerprints
from deaios.compute.generation import check_finish
from deaios.compute.masks.service import MaskService
from deaios.compute.records import ModelRecord
from deaios.compute.sampling import Rule, seed_of
from deaios.compute.service import EngineService
from deaios.compute.tokenizer import Tokenizer
from deaios.compute.verification import Report, Violation


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

    async def replay(self, evidence: Evidence) -> bool | None:
        """Exact replay where this engine's profile is on the record's list; None elsewhere.

        Fingerprints, where there are any, have to be the replay's own, within the class's distance. The end belongs to
        what is replayed: it follows from the ids by rules without arithmetic, on every machine.
        """
        opening = evidence.opening
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
