"""BatchSettlement and DepositCollector: x402's interface to the letter, and its money rules against a model."""

from dataclasses import replace

import boa
import pytest
from contracts_world import deploy, make_actor
from eth_abi import decode, encode
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from x402.mechanisms.evm.batch_settlement.abi import BATCH_SETTLEMENT_ABI
from x402.mechanisms.evm.batch_settlement.constants import (
    BATCH_SETTLEMENT_ADDRESS,
    ERC3009_DEPOSIT_COLLECTOR_ADDRESS,
    MAX_WITHDRAW_DELAY,
    MIN_WITHDRAW_DELAY,
)
from x402.mechanisms.evm.batch_settlement.types import ChannelConfig
from x402.mechanisms.evm.batch_settlement.utils import compute_channel_id

from deaios.ledger.artifacts import load_artifact
from deaios.ledger.x402 import COLLECTOR, SETTLEMENT, WITHDRAW_DELAY_MAX_S, WITHDRAW_DELAY_MIN_S
from deaios.primitives.encoding import encode_hex
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import checksum_address
from deaios.primitives.units import CREDIT

ZERO_ADDRESS = bytes(20)


def shape_of(entry):
    def kinds(items):
        return [(item["type"], kinds(item["components"])) if "components" in item else item["type"] for item in items]

    return kinds(entry["inputs"]), kinds(entry.get("outputs", ()))


def test_everything_that_stock_clients_call_is_there():
    import json
    from importlib import resources

    text = (resources.files("deaios.ledger") / "artifacts" / "BatchSettlement.json").read_text()
    ours = {(entry["type"], entry["name"]): entry for entry in json.loads(text)["abi"]}
    for entry in BATCH_SETTLEMENT_ABI:
        assert shape_of(ours[entry["type"], entry["name"]]) == shape_of(entry), entry["name"]


def test_addresses_and_bounds_are_x402_s():
    assert checksum_address(SETTLEMENT) == BATCH_SETTLEMENT_ADDRESS
    assert checksum_address(COLLECTOR) == ERC3009_DEPOSIT_COLLECTOR_ADDRESS
    assert (WITHDRAW_DELAY_MIN_S, WITHDRAW_DELAY_MAX_S) == (MIN_WITHDRAW_DELAY, MAX_WITHDRAW_DELAY)


def test_the_contract_and_x402_agree_on_ids(world):
    config = world.make_config(salt=b"\x07" * 32)
    stock = ChannelConfig(
        payer=checksum_address(config.payer),
        payer_authorizer=checksum_address(config.payer_authorizer),
        receiver=checksum_address(config.receiver),
        receiver_authorizer=checksum_address(config.receiver_authorizer),
        token=checksum_address(config.token),
        withdraw_delay=config.withdraw_delay,
        salt=encode_hex(config.salt),
    )
    found = bytes(world.settlement.getChannelId(world.tuple_of(config)))
    assert encode_hex(found) == compute_channel_id(stock, world.chain_id)
    assert found == world.settlement_id(config)
    assert world.settlement.MIN_WITHDRAW_DELAY() == MIN_WITHDRAW_DELAY
    assert world.collector.x402BatchSettlement() == BATCH_SETTLEMENT_ADDRESS


def test_a_deposit_needs_sound_terms(world):
    config = world.make_config()
    data = world.settlement_data(config, 5, world.buyer)
    cases = {
        "settlement: payer is zero": {"payer": ZERO_ADDRESS},
        "settlement: receiver is zero": {"receiver": ZERO_ADDRESS},
        "settlement: receiver's authorizer is zero": {"receiver_authorizer": ZERO_ADDRESS},
        "settlement: token is zero": {"token": ZERO_ADDRESS},
        "settlement: withdraw delay out of range": {"withdraw_delay": 899},
    }
    for message, change in cases.items():
        with boa.reverts(message):
            world.settlement.deposit(world.tuple_of(replace(config, **change)), 5, world.collector.address, data)
    with boa.reverts("settlement: withdraw delay out of range"):
        world.settlement.deposit(
            world.tuple_of(replace(config, withdraw_delay=2_592_001)), 5, world.collector.address, data
        )
    with boa.reverts("settlement: deposit is zero"):
        world.settlement.deposit(world.tuple_of(config), 0, world.collector.address, data)
    with boa.reverts("settlement: collector is zero"):
        world.settlement.deposit(world.tuple_of(config), 5, "0x" + "00" * 20, data)


def test_a_deposit_is_what_its_payer_signed_and_only_once(world):
    config = world.make_config()
    world.settlement_deposit(config, 5, salt=1)
    with boa.reverts("credit: authorization is used"):
        world.settlement_deposit(config, 5, salt=1)
    data = world.settlement_data(config, 5, world.buyer, 3)
    with boa.reverts("credit: signature is not the owner's"):
        world.settlement.deposit(world.tuple_of(config), 6, world.collector.address, data)
    other = replace(config, salt=b"\x01" * 32)
    with boa.reverts("credit: signature is not the owner's"):
        world.settlement.deposit(world.tuple_of(other), 5, world.collector.address, data)
    with boa.reverts("collector: signature is not 65 bytes"):
        short = encode(["uint256", "uint256", "uint256", "bytes"], [0, 2**64, 9, b"short"])
        world.settlement.deposit(world.tuple_of(config), 5, world.collector.address, short)


def test_each_token_is_its_own(world):
    holder = world.buyer.text
    other = deploy("Credit", "Euro", "EUR", "7", holder, 100, "0x" + "00" * 20, 100, sender=world.stranger.text)
    config = world.make_config()
    world.settlement_deposit(config, 50)
    other.transfer(world.settlement.address, 50, sender=holder)  # a gift; nobody's deposit
    euro = replace(config, token=bytes.fromhex(str(other.address)[2:]))
    world.settlement.claim([world.settlement_claim(config, 30)], sender=world.provider.text)
    with boa.reverts("settlement: claim exceeds the balance"):
        world.settlement.claim([world.settlement_claim(euro, 1)], sender=world.provider.text)
    world.settlement.settle(world.provider.text, other.address)
    assert other.balanceOf(world.provider.text) == 0
    assert world.settlement.receivers(world.provider.text, other.address) == (0, 0)
    assert world.settlement.receivers(world.provider.text, world.credit.address) == (30, 0)


def test_many_calls_in_one_are_all_or_none(world):
    config = world.make_config()
    channel_id = world.settlement_deposit(config, 100)
    terms = world.tuple_of(config)
    claim = world.settlement.claim.prepare_calldata([world.settlement_claim(config, 30)])
    refund = world.settlement.refund.prepare_calldata(terms, 70)
    view = world.settlement.channels.prepare_calldata(channel_id)
    with boa.reverts("settlement: caller is not on the receiver's side"):
        world.settlement.multicall([claim, refund], sender=world.stranger.text)
    before = world.balance(world.buyer)
    results = world.settlement.multicall([claim, refund, view], sender=world.provider.text)
    assert decode(["uint128", "uint128"], results[2]) == (30, 30)
    assert world.balance(world.buyer) == before + 70
    with boa.reverts("settlement: refund is zero"):
        zero = world.settlement.refund.prepare_calldata(terms, 0)
        settle = world.settlement.settle.prepare_calldata(world.provider.text, world.credit.address)
        world.settlement.multicall([settle, zero], sender=world.provider.text)
    assert world.settlement.receivers(world.provider.text, world.credit.address) == (30, 0)


WALLET = """
#pragma version 0.4.3
allowed: bytes32
@deploy
def __init__(allowed: bytes32):
    self.allowed = allowed
@external
@view
def isValidSignature(digest: bytes32, signature: Bytes[256]) -> bytes4:
    if keccak256(signature) == self.allowed:
        return 0x1626ba7e
    return 0x00000000
"""


def test_a_wallet_signs_by_erc_1271(world):
    said = b"the wallet's own word" * 5
    wallet = boa.loads(WALLET, keccak256(said))
    payer = bytes.fromhex(str(wallet.address)[2:])
    config = world.make_config(payer=None)
    config = replace(config, payer=payer, payer_authorizer=ZERO_ADDRESS)
    world.credit.transfer(wallet.address, 100, sender=world.buyer.text)
    # Its money comes by a collector of its own; here it is enough that the voucher is looked at.
    row = ((world.tuple_of(config), 5), said, 5)
    with boa.reverts("settlement: claim exceeds the balance"):
        world.settlement.claim([row], sender=world.provider.text)
    authorizer = replace(world.make_config(), receiver_authorizer=payer)
    world.settlement_deposit(authorizer, 50)
    terms = world.tuple_of(authorizer)
    with boa.reverts("settlement: signature"):
        world.settlement.refundWithSignature(terms, 5, 0, b"not its word", sender=world.stranger.text)
    world.settlement.refundWithSignature(terms, 5, 0, said, sender=world.stranger.text)
    assert world.settlement.channels(world.settlement_id(authorizer)) == (45, 0)


class Machine(RuleBasedStateMachine):
    """Two payers, two receivers, one token: balances are a model's after every step, whatever is tried."""

    def __init__(self, world):
        super().__init__()
        self.world = world
        self.anchor = boa.env.anchor()
        self.anchor.__enter__()

    def teardown(self):
        self.anchor.__exit__(None, None, None)

    @initialize()
    def begin(self):
        world = self.world
        self.people = [world.buyer, world.accuser]
        self.configs = [
            world.make_config(payer, receiver)
            for payer in self.people
            for receiver in (world.provider, make_actor("another receiver"))
        ]
        self.actors = {actor.address: actor for actor in (*self.people, world.provider, make_actor("another receiver"))}
        self.balance, self.claimed = [0] * 4, [0] * 4
        self.leaving = [None] * 4
        self.settled = dict.fromkeys(self.actors, 0)
        self.money = {address: world.balance(actor) for address, actor in self.actors.items()}
        self.held = world.balance(world.settlement)
        self.salt = 0

    def tries(self, should_work, call):
        if should_work:
            call()
        else:
            with boa.reverts():
                call()

    places = st.integers(0, 3)
    amounts = st.integers(0, 12)

    @rule(place=places, amount=amounts)
    def deposit(self, place, amount):
        config, self.salt = self.configs[place], self.salt + 1
        payer = self.actors[config.payer]
        self.tries(amount > 0, lambda: self.world.settlement_deposit(config, amount, payer, self.salt))
        self.balance[place] += amount
        self.money[config.payer] -= amount

    @rule(place=places, total=amounts, ceiling=amounts, honest=st.booleans())
    def claim(self, place, total, ceiling, honest):
        config = self.configs[place]
        row = self.world.settlement_claim(
            config, total, ceiling, self.actors[config.payer] if honest else self.world.stranger
        )
        is_news = total > self.claimed[place]
        works = not is_news or (honest and total <= min(ceiling, self.balance[place]))
        receiver = self.actors[config.receiver].text
        self.tries(works, lambda: self.world.settlement.claim([row], sender=receiver))
        if works and is_news:
            self.claimed[place] = total

    @rule(place=places)
    def settle(self, place):
        receiver = self.configs[place].receiver
        self.world.settlement.settle(self.actors[receiver].text, self.world.credit.address)
        due = sum(n for n, config in zip(self.claimed, self.configs, strict=True) if config.receiver == receiver)
        self.money[receiver] += due - self.settled[receiver]
        self.settled[receiver] = due

    @rule(place=places, amount=amounts)
    def leave(self, place, amount):
        config = self.configs[place]
        works = self.leaving[place] is None and 0 < amount <= self.balance[place] - self.claimed[place]
        terms, sender = self.world.tuple_of(config), self.actors[config.payer].text
        self.tries(works, lambda: self.world.settlement.initiateWithdraw(terms, amount, sender=sender))
        if works:
            self.leaving[place] = (amount, self.world.now + config.withdraw_delay)

    @rule(seconds=st.sampled_from([1, 899, 900]))
    def wait(self, seconds):
        self.world.wait(seconds)

    @rule(place=places)
    def leave_for_good(self, place):
        config, pending = self.configs[place], self.leaving[place]
        works = pending is not None and self.world.now >= pending[1]
        terms, sender = self.world.tuple_of(config), self.actors[config.payer].text
        self.tries(works, lambda: self.world.settlement.finalizeWithdraw(terms, sender=sender))
        if works:
            amount = min(pending[0], self.balance[place] - self.claimed[place])
            self.leaving[place] = None
            self.balance[place] -= amount
            self.money[config.payer] += amount

    @rule(place=places, amount=amounts)
    def refund(self, place, amount):
        config = self.configs[place]
        terms, sender = self.world.tuple_of(config), self.actors[config.receiver].text
        self.tries(amount > 0, lambda: self.world.settlement.refund(terms, amount, sender=sender))
        given = min(amount, self.balance[place] - self.claimed[place])
        self.balance[place] -= given
        self.money[config.payer] += given
        if self.leaving[place] is not None and given:
            left, ready_at = self.leaving[place]
            self.leaving[place] = None if given >= left else (left - given, ready_at)

    @invariant()
    def money_is_the_model_s(self):
        if not hasattr(self, "money"):
            return
        world = self.world
        for place, config in enumerate(self.configs):
            channel_id = world.settlement_id(config)
            assert world.settlement.channels(channel_id) == (self.balance[place], self.claimed[place])
            pending = self.leaving[place]
            started = 0 if pending is None else pending[1] - config.withdraw_delay
            assert world.settlement.pendingWithdrawals(channel_id) == (pending[0] if pending else 0, started)
        for address, actor in self.actors.items():
            assert world.balance(actor) == self.money[address]
        owed = sum(self.balance) - sum(self.settled.values())
        assert world.balance(world.settlement) == self.held + owed


def test_money_is_a_model_s_after_every_step(world):
    for payer in (world.buyer, world.accuser):
        assert world.balance(payer) > CREDIT
    run_state_machine_as_test(
        lambda: Machine(world),
        settings=settings(
            max_examples=4,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


@pytest.mark.parametrize("name", ["BatchSettlement", "DepositCollector"])
def test_what_lies_at_the_address_is_all_there_is(name):
    """No constructor and no immutables: the runtime code alone is the contract."""
    assert load_artifact(name).abi.constructor == ()
