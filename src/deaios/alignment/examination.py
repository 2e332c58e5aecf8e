"""The examination of one answer: which rule comes when, cheapest first, and how it ends.

The world (catalogue, model files, chain, engine) is asked through a protocol, so that the order and the outcome are
the same for a command, a test and anybody else. An error of the world is the caller's to show as "cannot be checked".
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from deaios.alignment.answer import Answer
from deaios.alignment.check import (
    ChainView,
    NetworkTerms,
    check_binding,
    check_chain,
    check_delivery,
    check_question,
    check_tokens,
    list_trusts,
    render_prompt,
)
from deaios.alignment.evidence import is_promised
from deaios.alignment.facts import Fact, Outcome, Verification, collect, find_broken
from deaios.alignment.privacy import check_conduct, list_answer_privacy, tell_privacy
from deaios.compute.embedding import is_embedding
from deaios.compute.fingerprints import owes_replay
from deaios.compute.records import UNAUDITABLE, ModelRecord
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.compute.verification import Replay, Report
from deaios.ledger.structs import Level
from deaios.market.parts import read_part


class World(Protocol):
    """Where a check gets what is not in the file; `node` has the live one. Everything may raise `Unavailable…`."""

    async def fetch_record(self, record_id: bytes) -> ModelRecord:
        """The model record of an id, as the catalogue tells it."""

    async def open_model(self, record: ModelRecord) -> tuple[Tokenizer, ChatTemplate]:
        """Tokenizer and template of a record's own files."""

    async def read_chain(self, answer: Answer) -> ChainView:
        """What the chain says."""

    async def recompute(self, answer: Answer, record: ModelRecord, prompt_ids: Sequence[int]) -> Report:
        """One prefill over prompt and output on an engine whose known answers are right.

        Where the ask is owed exact replay, and the engine is the one that the receipt names, the report has it too.
        """


async def examine(answer: Answer, terms: NetworkTerms, world: World, user_nonce: bytes | None) -> Verification:
    """Check an answer up to its first broken rule.

    Args:
        answer: as decoded.
        terms: of the network that it is held to.
        world: everything else.
        user_nonce: the nonce that the user sent, where it is known.
    """
    facts = collect(check_binding(answer, terms, user_nonce), check_conduct(answer, terms))
    if find_broken(facts):
        return _end(facts)
    record = await world.fetch_record(answer.opening.ask.model_record_id)
    tokenizer, template = await world.open_model(record)
    facts += collect(check_question(answer, terms, record, tokenizer, template), check_delivery(answer, tokenizer))
    if find_broken(facts):
        return _end(facts)
    facts += collect(check_chain(answer, await world.read_chain(answer)))
    if find_broken(facts):
        return _end(facts)
    result = await _examine_tokens(answer, facts, record, (tokenizer, template), world, user_nonce)
    if result.outcome is Outcome.VIOLATED:
        return result
    return replace(result, facts=(*result.facts, *tell_privacy(answer)), privacy=list_answer_privacy(answer))


async def _examine_tokens(
    answer: Answer,
    facts: list[Fact],
    record: ModelRecord,
    language: tuple[Tokenizer, ChatTemplate],
    world: World,
    user_nonce: bytes | None,
) -> Verification:
    """The last and costly part: one prefill, where the record lets anybody make it."""
    if record.serving == UNAUDITABLE:
        says = (
            f"cannot be checked: nobody can fetch the weights of {record.name}; the answer shows who gave it, not how"
        )
        return Verification(Outcome.UNCHECKED, tuple(facts), says)
    prompt_ids = render_prompt(read_part(answer.part, answer.body), *language)
    report = await world.recompute(answer, record, prompt_ids)
    if not report.ok and not is_promised(answer.opening):
        return _end_unpromised(answer, facts, report)
    facts += collect(check_tokens(answer, report, record), list_trusts(user_nonce))
    if is_embedding(answer.opening.ask.params) and not find_broken(facts):
        says = f"verified: the input's vector, 1 - cosine {report.margin_max:.2g}"
        return Verification(Outcome.VERIFIED, tuple(facts), says, report)
    if owes_replay(answer.opening.ask) and not find_broken(facts):
        return _end_replayed(facts, report)
    return _end(facts, report)


def _end(facts: list[Fact], report: Report | None = None) -> Verification:
    broken = find_broken(facts)
    if broken is not None:
        says = f"violation: {broken.rule}: {broken.says}"
        if report is not None and report.replay is not None:
            says += "; exact replay gives " + ("the answer" if report.replay.equal else _name_difference(report.replay))
        return Verification(Outcome.VIOLATED, tuple(facts), says, report)
    assert report is not None, "only a recomputed answer is verified"
    says = f"verified: {_describe(report)}"
    return Verification(Outcome.VERIFIED, tuple(facts), says, report)


def _end_replayed(facts: list[Fact], report: Report) -> Verification:
    """Level 4 was ordered and every token holds: what replay adds, or why it adds nothing."""
    if report.replay is None:
        says = f"verified: {_describe(report)}; not replayed: the receipt names another engine than this machine's"
        return Verification(Outcome.VERIFIED, tuple(facts), says, report)
    if report.replay.equal:
        says = f"verified: {_describe(report)}, replayed exactly"
        return Verification(Outcome.VERIFIED, tuple(facts), says, report)
    says = (
        f"not replayable: exact replay on the engine that the receipt names gives {_name_difference(report.replay)}, "
        f"and level 4 was ordered; what holds is level {Level.FINGERPRINTED}: {_describe(report)}. The same build on "
        "another kind of processor can round so, and a provider can have chosen so"
    )
    return Verification(Outcome.UNCHECKED, tuple(facts), says, report)


def _name_difference(replay: Replay) -> str:
    return f"something else at token {replay.first_difference}"


def _describe(report: Report) -> str:
    says = f"{report.tokens_checked} tokens, largest margin {report.margin_max:.4f} logit"
    return says + (f", largest fingerprint distance {report.distance_max:.4f}" if report.distances else "")


def _end_unpromised(answer: Answer, facts: list[Fact], report: Report) -> Verification:
    says = (
        f"cannot be checked: a receipt of level {answer.opening.receipt.level} does not promise tokens that can be "
        "recomputed, and these are not what the model gives; it shows who answered, not what computed it"
    )
    return Verification(Outcome.UNCHECKED, tuple(facts), says, report)
