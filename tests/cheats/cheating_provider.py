"""Providers that cheat, each by one change to what an honest one does.

A generator that runs another model, prompt or dice than were ordered goes into the real seller; what lies about numbers
stands between the real seller and its buyer, or signs with the provider's key what the seller never would.
"""

from dataclasses import replace

from cheats_model import END, with_temperature

from deaios.ledger.eip712 import sign_struct
from deaios.ledger.structs import FinishReason
from deaios.market.ports import Piece
from deaios.primitives.hashing import sha256

HIDDEN_PROMPT = (17, 4, 33)


def smaller_model(world):
    """Sees the last four ids only: cheaper, and mostly plausible."""
    return world.start_machine(memory=4).generate


def requantised_model(world):
    """The published weights in fewer bits."""
    return world.start_machine(round_to=0.5).generate


def stale_model(world):
    """Last month's weights under this month's record."""
    return world.start_machine(weights="last month's").generate


def hidden_prompt(world):
    """Puts words of its own before the user's."""

    def generate(prompt_ids, params, seed, logprobs):
        return world.machine.generate(HIDDEN_PROMPT + prompt_ids, params, seed, logprobs)

    return generate


def colder(world):
    """Samples at another temperature than was ordered."""

    def generate(prompt_ids, params, seed, logprobs):
        return world.machine.generate(prompt_ids, with_temperature(params, 200), seed, logprobs)

    return generate


def own_seed(world):
    """Draws with a seed of its own, which it could grind until an answer suits it."""

    def generate(prompt_ids, params, seed, logprobs):
        return world.machine.generate(prompt_ids, params, sha256(b"mine" + seed), logprobs)

    return generate


def invented_tokens(_world):
    """Runs no model at all."""

    async def generate(prompt_ids, params, seed, logprobs):
        for position in range(params.max_tokens - 1):
            yield Piece(1 + seed[position % 32] % 60)
        yield Piece(END, FinishReason.STOP_TOKEN)

    return generate


def early_stop(world):
    """Says after a few true tokens that the model ended its answer."""

    async def generate(prompt_ids, params, seed, logprobs):
        count = 0
        async for piece in world.machine.generate(prompt_ids, params, seed, logprobs):
            count += 1
            if count == 3:
                yield replace(piece, finish=FinishReason.STOP_TOKEN)
                return
            yield piece

    return generate


WRONG_ANSWERS = (
    smaller_model,
    requantised_model,
    stale_model,
    hidden_prompt,
    colder,
    own_seed,
    invented_tokens,
    early_stop,
)


def sign_receipt(world, provider, receipt, **changes):
    """What a provider's key can sign beside its seller: any receipt at all."""
    changed = replace(receipt, **changes)
    return changed, sign_struct(provider.key, world.terms.protocol, changed)
