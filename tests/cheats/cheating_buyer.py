"""Buyers that cheat: with somebody else's money, with money that is leaving, by denying an order, by a suit."""

from dataclasses import replace

from deaios.alignment.evidence import Evidence, encode_evidence
from deaios.ledger.eip712 import hash_struct, sign_struct
from deaios.ledger.structs import Request, Voucher
from deaios.market.offers import compute_quote
from deaios.market.orders import Papers, build_ask
from deaios.primitives.hashing import ZERO32, sha256
from deaios.runtime.clock import SystemClock


async def write_papers(world, buyer, provider, order, *, channel, voucher, key=None):
    """Papers for any channel and voucher that a cheat has come by; signed with its own key, or one it stole."""
    key = key or buyer.key
    head = await buyer.chain.fetch_head()
    offer = await provider.seller.desk.fetch_current_offer()
    ask = build_ask(order, key.address)
    request = Request(
        ask_digest=hash_struct(ask),
        provider=provider.address,
        offer_digest=offer.digest,
        channel_id=world.terms.channel_id(channel),
        max_fee=compute_quote(offer.offer, len(order.prompt_ids), order.params.max_tokens),
        anchor_block_hash=head.block_hash,
        deadline_block=head.number + 100,
    )
    signature = sign_struct(key, world.terms.protocol, request)
    amount, voucher_signature = voucher
    paid = Voucher(request.channel_id, amount)
    return Papers(ask, order.salt, order.prompt_ids, request, signature, channel, paid, voucher_signature)


async def sue(world, plaintiff, opening, evidence=None, *, manifest=None):
    """Take a receipt to a jury, with any evidence at all; gives the dispute's id."""
    disputes, credit = world.contracts.disputes, world.contracts.credit
    bond = await disputes.bond_of(hash_struct(opening.receipt))
    await credit.ensure_allowance(plaintiff.sender, disputes.address, bond)
    root, salt = sha256(opening.receipt_digest), sha256(str(SystemClock().monotonic_s()).encode())
    if manifest is None:
        manifest = ZERO32 if evidence is None else await world.shelf.put_bytes(evidence)
    await disputes.commit_evidence(plaintiff.sender, root, salt)
    papers = opening.request, opening.request_signature, opening.receipt, opening.receipt_signature
    return (await disputes.open(plaintiff.sender, *papers, root, manifest, salt)).value


def true_evidence(order, opening):
    """Everything as it was."""
    return encode_evidence(Evidence(opening, order.prompt_ids))


def another_prompt(order, opening):
    """Other words than were ordered: what came is not an answer to them."""
    return encode_evidence(Evidence(opening, (*order.prompt_ids[:-1], 1 + order.prompt_ids[-1])))


def another_output(order, opening):
    """Tokens that the provider never sent."""
    ids = (*opening.output_ids[:-1], opening.output_ids[-1] ^ 1)
    return encode_evidence(Evidence(replace(opening, output_ids=ids), order.prompt_ids))


def too_much(order, opening):
    """More bytes than a juror reads."""
    return true_evidence(order, opening) + bytes(9 << 20)


FRAMES = (true_evidence, another_prompt, another_output, too_much)
