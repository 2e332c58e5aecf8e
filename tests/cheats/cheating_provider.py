"""Providers that cheat, each by one change to what an honest one does.

A generator that runs another model, prompt or dice than were ordered goes into the real seller; what lies about numbers
stands between the real seller and its buyer, or signs with the provider's key what the seller never would.
"""

from dataclasses import replace

import numpy as np
from aiohttp import web
from cheats_model import END, with_temperature

from deaios.compute.fingerprints import encode_fingerprints
from deaios.ledger.eip712 import sign_struct
from deaios.ledger.structs import FinishReason, Level, State
from deaios.market.batches import SignedReceipt
from deaios.market.ports import Piece
from deaios.market.wire import build_finished, decode_line, encode_line, read_receipt
from deaios.primitives.hashing import sha256
from deaios.runtime.http import build_application

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

    def generate(wanted):
        return world.machine.generate(replace(wanted, prompt_ids=HIDDEN_PROMPT + wanted.prompt_ids))

    return generate


def colder(world):
    """Samples at another temperature than was ordered."""

    def generate(wanted):
        return world.machine.generate(replace(wanted, params=with_temperature(wanted.params, 200)))

    return generate


def own_seed(world):
    """Draws with a seed of its own, which it could grind until an answer suits it."""

    def generate(wanted):
        return world.machine.generate(replace(wanted, seed=sha256(b"mine" + wanted.seed)))

    return generate


def invented_tokens(_world):
    """Runs no model at all."""

    async def generate(wanted):
        leaf = encode_fingerprints(np.ones((1, 8), np.float32)) if wanted.is_printed else b""
        for position in range(wanted.params.max_tokens - 1):
            yield Piece(1 + wanted.seed[position % 32] % 60, leaf=leaf)
        yield Piece(END, FinishReason.STOP_TOKEN, leaf=leaf)

    return generate


def early_stop(world):
    """Says after a few true tokens that the model ended its answer."""

    async def generate(wanted):
        count = 0
        async for piece in world.machine.generate(wanted):
            count += 1
            if count == 3:
                yield replace(piece, finish=FinishReason.STOP_TOKEN)
                return
            yield piece

    return generate


def cut_short(world):
    """Gives a few true tokens and says that they are all that was ordered."""

    async def generate(wanted):
        count = 0
        async for piece in world.machine.generate(wanted):
            count += 1
            yield replace(piece, finish=FinishReason.LENGTH if count == 3 else None)
            if count == 3:
                return

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


def inflated_prompt(receipt):
    """Bills a hundred prompt tokens more than were ordered."""
    return replace(receipt, prompt_tokens=receipt.prompt_tokens + 100, fee=receipt.fee + 100)


def inflated_completion(receipt):
    """Bills ten tokens that never came."""
    return replace(receipt, completion_tokens=receipt.completion_tokens + 10, fee=receipt.fee + 40)


def inflated_fee(receipt):
    """True counts, another price than the posted one."""
    return replace(receipt, fee=receipt.fee + 1, charged_cumulative=receipt.charged_cumulative + 1)


def inflated_total(receipt):
    """A true fee on top of charges that nobody ordered."""
    return replace(receipt, charged_cumulative=receipt.charged_cumulative + 100_000)


def billed_twice(receipt):
    """The same charge again under a total that has been billed: what an earlier receipt said is left out."""
    return replace(receipt, charged_cumulative=receipt.fee)


def cancelled_by_nobody(receipt):
    """An early end, signed as if the buyer had cancelled, and billed."""
    return replace(receipt, state=State.CANCELLED, finish_reason=FinishReason.CANCELLED)


def more_cached_than_asked(receipt):
    """Says that more prompt tokens came from a cache than there are."""
    return replace(receipt, cached_tokens=receipt.prompt_tokens + 1)


def another_engine(receipt):
    """Names an engine that was not offered."""
    return replace(receipt, engine_profile=sha256(b"another engine"))


def below_its_level(receipt):
    """Promises less than was offered."""
    return replace(receipt, level=Level.SIGNED)


WRONG_NUMBERS = (
    inflated_prompt,
    inflated_completion,
    inflated_fee,
    inflated_total,
    billed_twice,
    cancelled_by_nobody,
    more_cached_than_asked,
    another_engine,
    below_its_level,
)


def build_lying_door(world, key, url, lie):
    """A door before the real seller's: it changes the streamed receipt and signs it with the seller's key."""

    async def forward(request):
        async with world.http.session.request(
            request.method,
            url + request.path_qs,
            data=await request.read(),
            headers={"Content-Type": "application/json"},
        ) as answer:
            lines = [tell(line) for line in (await answer.read()).splitlines()]
            return web.Response(body=b"\n".join(lines) + b"\n", status=answer.status, content_type=answer.content_type)

    def tell(data):
        if b'"kind":"finished"' not in data:
            return data
        line = decode_line(data)
        changed = lie(read_receipt(line.receipt, line.signature).receipt)
        return encode_line(
            build_finished(SignedReceipt(changed, sign_struct(key, world.terms.protocol, changed)))
        ).rstrip(b"\n")

    application = build_application("cheat", body_bytes_max=1 << 20)
    application.router.add_route("*", "/{path:.*}", forward)
    return application
