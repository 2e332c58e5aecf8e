"""What a saved answer says about who saw its prompt, each point as enforced, promised, claimed or not promised.

Pure. `enforced` is said of nothing but what the check itself has proven: that the public record holds digests. What a
provider stated is bound by its signature; that the gateway sealed the papers is the gateway's word.
"""

from collections.abc import Iterator

from deaios.alignment.answer import Answer
from deaios.alignment.check import NetworkTerms
from deaios.alignment.facts import Fact, Head, compare
from deaios.market.conduct import Kind, PrivacyFact, list_privacy, recover_stater
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import checksum_address

_HEADS = {
    Kind.ENFORCED: Head.PROVEN,
    Kind.PROMISED: Head.PROMISED,
    Kind.CLAIMED: Head.GATEWAY,
    Kind.UNPROMISED: Head.PROMISED,
}


def check_conduct(answer: Answer, terms: NetworkTerms) -> Iterator[Fact]:
    """The statement is the provider's own, on this network."""
    conduct, provider = answer.opening.conduct, answer.opening.request.provider
    if conduct is None:
        return
    says = f"the provider {checksum_address(provider)} signed the statement about prompts"
    try:
        signer = recover_stater(terms.network_id, conduct)
    except Invalid as error:
        yield Fact(Head.PROVEN, "conduct signature", False, f"not so: {says} ({error})")
    else:
        yield compare("conduct signature", says, signer, provider)


def list_answer_privacy(answer: Answer) -> tuple[PrivacyFact, ...]:
    """The points of an answer whose digests, signatures and batch were checked."""
    opening = answer.opening
    return list_privacy(opening.conduct, opening.receipt.finished_at_ms, has_sealed=False)


def tell_privacy(answer: Answer) -> Iterator[Fact]:
    """The same among the check's other facts, under what each rests on."""
    for point in list_answer_privacy(answer):
        yield Fact(_HEADS[point.kind], f"privacy, {point.fact}", True, f"{point.kind}: {point.says}")
