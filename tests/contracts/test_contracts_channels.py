"""Channels: digests equal to the Python side, who may do what, and every way to take too much."""

from dataclasses import replace

import boa
import pytest
from eth_abi import encode

from deaios.ledger import structs
from deaios.ledger.eip712 import hash_typed_data, sign_struct
from deaios.primitives.hashing import keccak256
from deaios.primitives.units import CREDIT

ZERO_ADDRESS = bytes(20)


@pytest.fixture
def config(world):
    return world.make_config()


@pytest.fixture
def channel(world, config):
    world.deposit(config, 5 * CREDIT)
    return config


def test_digests_are_those_of_the_python_side(world, config):
    channel_id = world.channel_id(config)
    assert bytes(world.channels.getChannelId(world.tuple_of(config))) == channel_id
    voucher = structs.Voucher(channel_id, 123456789)
    assert bytes(world.channels.getVoucherDigest(channel_id, 123456789)) == hash_typed_data(
        world.channels_domain(), voucher
    )
    refund = structs.Refund(channel_id, 7, 99)
    assert bytes(world.channels.getRefundDigest(channel_id, 7, 99)) == hash_typed_data(world.channels_domain(), refund)


def test_selectors_are_those_of_x402(world):
    config = "(address,address,address,address,address,uint40,bytes32)"
    claims = f"(({config},uint128),bytes,uint128)[]"
    signatures = [
        f"deposit({config},uint128,address,bytes)",
        f"claim({claims})",
        f"claimWithSignature({claims},bytes)",
        "settle(address,address)",
        f"initiateWithdraw({config},uint128)",
        f"finalizeWithdraw({config})",
        f"refund({config},uint128)",
        f"refundWithSignature({config},uint128,uint256,bytes)",
        "channels(bytes32)",
        "pendingWithdrawals(bytes32)",
        "receivers(address,address)",
        "refundNonce(bytes32)",
    ]
    known = {function.method_id for function in world.channels._functions}
    assert [name for name in signatures if keccak256(name.encode())[:4] not in known] == []


def test_deposit_claim_settle(world, config):
    payer_before, receiver_before = world.balance(world.buyer), world.balance(world.provider)
    channel_id = world.deposit(config, 5 * CREDIT)
    assert world.channels.channels(channel_id) == (5 * CREDIT, 0)
    parties = (world.buyer.text, world.buyer.text, world.provider.text)
    assert world.channels.partiesOf(channel_id) == parties
    world.channels.claim([world.make_claim(config, 2 * CREDIT)], sender=world.provider.text)
    world.channels.claim([world.make_claim(config, 3 * CREDIT, 4 * CREDIT)], sender=world.provider.text)
    assert world.channels.channels(channel_id) == (5 * CREDIT, 3 * CREDIT)
    world.channels.settle(world.provider.text, world.credit.address, sender=world.stranger.text)
    assert world.channels.receivers(world.provider.text, world.credit.address) == (3 * CREDIT, 3 * CREDIT)
    assert world.balance(world.provider) == receiver_before + 3 * CREDIT
    assert world.balance(world.buyer) == payer_before - 5 * CREDIT
    world.channels.settle(world.provider.text, world.credit.address, sender=world.stranger.text)
    assert world.balance(world.provider) == receiver_before + 3 * CREDIT


def test_a_deposit_needs_sound_terms(world, config):
    cases = {
        "channels: payer is zero": {"payer": ZERO_ADDRESS},
        "channels: receiver is zero": {"receiver": ZERO_ADDRESS},
        "channels: receiver's authorizer is zero": {"receiver_authorizer": ZERO_ADDRESS},
        "channels: another token": {"token": world.stranger.address},
        "channels: withdraw delay out of range": {"withdraw_delay": 59},
    }
    for message, change in cases.items():
        bad = replace(config, **change)
        data = world.collector_data(bad, 5, world.buyer)
        with boa.reverts(message):
            world.channels.deposit(world.tuple_of(bad), 5, world.channels.address, data)
    with boa.reverts("channels: withdraw delay out of range"):
        world.deposit(replace(config, withdraw_delay=3601), 5)
    for delay in (60, 3600):
        world.deposit(replace(config, withdraw_delay=delay), 5)
    data = world.collector_data(config, 5, world.buyer)
    with boa.reverts("channels: deposit is zero"):
        world.channels.deposit(world.tuple_of(config), 0, world.channels.address, data)
    with boa.reverts("channels: collector is not this contract"):
        world.channels.deposit(world.tuple_of(config), 5, world.stranger.text, data)


def test_a_deposit_is_what_the_payer_signed_and_only_once(world, config):
    world.deposit(config, 5, salt=1)
    with boa.reverts("credit: authorization is used"):
        world.deposit(config, 5, salt=1)
    world.deposit(config, 6, salt=2)
    assert world.channels.channels(world.channel_id(config)) == (11, 0)
    signed_for_five = world.collector_data(config, 5, world.buyer, 3)
    with boa.reverts("credit: signature is not the owner's"):
        world.channels.deposit(world.tuple_of(config), 6, world.channels.address, signed_for_five)
    other = replace(config, salt=b"\x01" * 32)
    with boa.reverts("credit: signature is not the owner's"):
        world.channels.deposit(world.tuple_of(other), 5, world.channels.address, signed_for_five)
    with boa.reverts("channels: deposit signature is not 65 bytes"):
        data = encode(["uint256", "uint256", "uint256", "bytes"], [0, 2**64, 9, b"short"])
        world.channels.deposit(world.tuple_of(config), 5, world.channels.address, data)
    with boa.reverts():
        world.channels.deposit(world.tuple_of(config), 5, world.channels.address, b"\xff" * 96)


def test_claims_stay_within_voucher_and_balance(world, channel):
    with boa.reverts("channels: claim exceeds the voucher"):
        world.channels.claim([world.make_claim(channel, 3, 2)], sender=world.provider.text)
    with boa.reverts("channels: claim exceeds the balance"):
        world.channels.claim([world.make_claim(channel, 5 * CREDIT + 1)], sender=world.provider.text)
    world.channels.claim([world.make_claim(channel, 5 * CREDIT)], sender=world.provider.text)
    world.channels.claim([world.make_claim(channel, 5 * CREDIT)], sender=world.provider.text)
    world.channels.claim([world.make_claim(channel, 1)], sender=world.provider.text)
    assert world.channels.channels(world.channel_id(channel)) == (5 * CREDIT, 5 * CREDIT)


def test_claims_need_the_payer_s_signature_and_the_receiver_s_side(world, channel):
    forged = world.make_claim(channel, 5, signer=world.provider)
    with boa.reverts("channels: voucher's signature"):
        world.channels.claim([forged], sender=world.provider.text)
    with boa.reverts("channels: caller is not on the receiver's side"):
        world.channels.claim([world.make_claim(channel, 5)], sender=world.stranger.text)
    voucher, signature, total = world.make_claim(channel, 5)
    with boa.reverts("channels: voucher's signature"):
        world.channels.claim([((voucher[0], 6), signature, total)], sender=world.provider.text)
    with boa.reverts("channels: no claims"):
        world.channels.claim([], sender=world.provider.text)
    with boa.reverts():
        world.channels.claim([world.make_claim(channel, 1)] * 101, sender=world.provider.text)


def test_without_an_authorizer_the_payer_signs(world):
    config = world.make_config(payer_authorizer=ZERO_ADDRESS, salt=b"\x04" * 32)
    world.deposit(config, 10)
    with boa.reverts("channels: voucher's signature"):
        world.channels.claim([world.make_claim(config, 5, signer=world.stranger)], sender=world.provider.text)
    world.channels.claim([world.make_claim(config, 5)], sender=world.provider.text)
    assert world.channels.channels(world.channel_id(config)) == (10, 5)


def test_another_authorizer_signs_and_withdraws_for_the_payer(world):
    config = world.make_config(payer_authorizer=world.stranger.address)
    world.deposit(config, 10)
    with boa.reverts("channels: voucher's signature"):
        world.channels.claim([world.make_claim(config, 5)], sender=world.provider.text)
    world.channels.claim([world.make_claim(config, 5, signer=world.stranger)], sender=world.provider.text)
    before = world.balance(world.buyer)
    world.channels.initiateWithdraw(world.tuple_of(config), 5, sender=world.stranger.text)
    world.wait(900)
    world.channels.finalizeWithdraw(world.tuple_of(config), sender=world.stranger.text)
    assert world.balance(world.buyer) == before + 5


def claim_batch_digest(world, rows):
    entry = keccak256(b"ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)")
    batch = keccak256(
        b"ClaimBatch(ClaimEntry[] claims)ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
    )
    items = b"".join(
        keccak256(entry + world.channel_id(config) + row[0][1].to_bytes(32) + row[2].to_bytes(32))
        for config, row in rows
    )
    return keccak256(b"\x19\x01" + world.channels_domain().separator() + keccak256(batch + keccak256(items)))


def test_anyone_claims_with_the_receiver_authorizer_s_signature(world):
    configs = [world.make_config(salt=bytes([n]) * 32) for n in (1, 2, 3)]
    for config in configs:
        world.deposit(config, 100)
    rows = [(config, world.make_claim(config, 10 * n + 5)) for n, config in enumerate(configs)]
    claims = [row for _, row in rows]
    digest = claim_batch_digest(world, rows)
    assert bytes(world.channels.getClaimBatchDigest(claims)) == digest
    assert bytes(world.channels.getClaimBatchDigest([])) == claim_batch_digest(world, [])
    signature = world.provider.key.sign_digest(digest)
    with boa.reverts("channels: signature"):
        world.channels.claimWithSignature(claims[:2], signature, sender=world.stranger.text)
    world.channels.claimWithSignature(claims, signature, sender=world.stranger.text)
    assert world.channels.receivers(world.provider.text, world.credit.address) == (45, 0)
    foreign = world.make_config(receiver=world.accuser, salt=b"\x09" * 32)
    world.deposit(foreign, 100)
    mixed = [(configs[0], world.make_claim(configs[0], 50)), (foreign, world.make_claim(foreign, 50))]
    signature = world.provider.key.sign_digest(claim_batch_digest(world, mixed))
    with boa.reverts("channels: another authorizer"):
        world.channels.claimWithSignature([row for _, row in mixed], signature, sender=world.stranger.text)


def test_a_withdrawal_waits_and_claims_go_first(world, channel):
    terms = world.tuple_of(channel)
    with boa.reverts("channels: caller is not on the payer's side"):
        world.channels.initiateWithdraw(terms, 1, sender=world.provider.text)
    with boa.reverts("channels: nothing to withdraw"):
        world.channels.initiateWithdraw(terms, 0, sender=world.buyer.text)
    with boa.reverts("channels: withdrawal exceeds what is unclaimed"):
        world.channels.initiateWithdraw(terms, 5 * CREDIT + 1, sender=world.buyer.text)
    with boa.reverts("channels: no withdrawal is pending"):
        world.channels.finalizeWithdraw(terms, sender=world.buyer.text)
    world.channels.initiateWithdraw(terms, 5 * CREDIT, sender=world.buyer.text)
    assert world.channels.pendingWithdrawals(world.channel_id(channel)) == (5 * CREDIT, world.now)
    with boa.reverts("channels: a withdrawal is pending"):
        world.channels.initiateWithdraw(terms, 1, sender=world.buyer.text)
    world.wait(899)
    with boa.reverts("channels: withdraw delay has not passed"):
        world.channels.finalizeWithdraw(terms, sender=world.buyer.text)
    world.channels.claim([world.make_claim(channel, 2 * CREDIT)], sender=world.provider.text)
    world.wait(1)
    with boa.reverts("channels: caller is not on the payer's side"):
        world.channels.finalizeWithdraw(terms, sender=world.stranger.text)
    before = world.balance(world.buyer)
    world.channels.finalizeWithdraw(terms, sender=world.buyer.text)
    assert world.balance(world.buyer) == before + 3 * CREDIT
    assert world.channels.channels(world.channel_id(channel)) == (2 * CREDIT, 2 * CREDIT)
    with boa.reverts("channels: claim exceeds the balance"):
        world.channels.claim([world.make_claim(channel, 2 * CREDIT + 1)], sender=world.provider.text)


def test_refunds_by_call_and_by_signature(world, channel):
    terms, channel_id = world.tuple_of(channel), world.channel_id(channel)
    world.channels.claim([world.make_claim(channel, 1 * CREDIT)], sender=world.provider.text)
    before = world.balance(world.buyer)
    with boa.reverts("channels: caller is not on the receiver's side"):
        world.channels.refund(terms, 1, sender=world.buyer.text)
    with boa.reverts("channels: refund is zero"):
        world.channels.refund(terms, 0, sender=world.provider.text)
    signature = sign_struct(world.provider.key, world.channels_domain(), structs.Refund(channel_id, 0, CREDIT))
    with boa.reverts("channels: refund nonce"):
        world.channels.refundWithSignature(terms, CREDIT, 1, signature)
    with boa.reverts("channels: signature"):
        world.channels.refundWithSignature(terms, CREDIT + 1, 0, signature)
    world.channels.refundWithSignature(terms, CREDIT, 0, signature, sender=world.stranger.text)
    with boa.reverts("channels: refund nonce"):
        world.channels.refundWithSignature(terms, CREDIT, 0, signature, sender=world.stranger.text)
    world.channels.refund(terms, 2**128 - 1, sender=world.provider.text)
    assert world.balance(world.buyer) == before + 4 * CREDIT
    assert world.channels.channels(channel_id) == (CREDIT, CREDIT)
    assert world.channels.refundNonce(channel_id) == 2
    world.channels.refund(terms, 5, sender=world.provider.text)
    assert world.channels.refundNonce(channel_id) == 3


def test_a_refund_shrinks_a_pending_withdrawal(world, channel):
    terms, channel_id = world.tuple_of(channel), world.channel_id(channel)
    world.channels.initiateWithdraw(terms, 3 * CREDIT, sender=world.buyer.text)
    started = world.now
    world.channels.refund(terms, CREDIT, sender=world.provider.text)
    assert world.channels.pendingWithdrawals(channel_id) == (2 * CREDIT, started)
    world.channels.refund(terms, 2 * CREDIT, sender=world.provider.text)
    assert world.channels.pendingWithdrawals(channel_id) == (0, 0)
    assert world.channels.channels(channel_id) == (2 * CREDIT, 0)


def test_a_full_batch_of_claims_fits_into_a_block(world):
    config = world.make_config()
    world.deposit(config, 200)
    claims = [world.make_claim(config, total) for total in range(1, 101)]
    gas_before = boa.env.get_gas_used()
    world.channels.claim(claims, sender=world.provider.text)
    assert world.channels.channels(world.channel_id(config)) == (200, 100)
    assert boa.env.get_gas_used() - gas_before < 15_000_000


def test_delay_bounds_are_checked_at_deployment(world, deploy_contract, deployment_reverts):
    with deployment_reverts("channels: delay bounds are out of order"):
        deploy_contract("Channels", world.credit.address, 10, 9)
    with deployment_reverts("channels: token is zero"):
        deploy_contract("Channels", "0x" + "00" * 20, 1, 9)
