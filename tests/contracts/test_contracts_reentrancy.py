"""Reentrancy: a token that calls back into everything, as a participant with rights of its own, takes nothing twice.

The token is payer, receiver, operator, accuser, prover and challenger at once, and every movement of money calls it.
What the contract that moves the money is asked again is refused; what other contracts are asked meanwhile leaves every
contract able to pay what it owes.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import boa
import pytest
import vyper
from contracts_calls import ROWS
from contracts_lies import CHAIN_ID, Chains
from contracts_scene import EVERYONE, Scene
from contracts_world import (
    ACQUIT,
    ANSWER_SECONDS,
    CHALLENGE_BOND,
    GUILTY,
    NOBODY,
    ROUND_SECONDS,
    STORAGE,
    SUPPLY,
    ZERO32,
    World,
    address_of,
    make_actor,
    offer_tuple,
)
from vyper.compiler.input_bundle import FilesystemInputBundle
from vyper.compiler.settings import Settings

from deaios.ledger import structs
from deaios.ledger.eip712 import hash_struct, sign_struct
from deaios.primitives.hashing import keccak256
from deaios.primitives.merkle import build_root, prove_leaf
from deaios.primitives.units import CREDIT

CONTRACTS = ("channels", "staking", "beacon", "disputes", "forks", "availability", "networks", "equivocation")
ROOT, MANIFEST, SALT = b"\x07" * 32, b"\x09" * 32, b"\x08" * 32


@pytest.fixture(scope="module")
def compiled():
    bundle = FilesystemInputBundle([Path(__file__).parent])
    return vyper.compile_from_file_input(
        bundle.load_file(Path("HostileToken.vy")),
        input_bundle=bundle,
        output_formats=["abi", "bytecode"],
        settings=Settings(evm_version="cancun"),
    )


class Heist:
    """A suite over the hostile token, honest money in every contract, and whatever the thief needs to call again."""

    def __init__(self, compiled):
        constructor = bytes.fromhex(compiled["bytecode"][2:])
        faucet = make_actor("faucet").address.rjust(32, b"\0")
        address, _ = boa.env.deploy_code(bytecode=constructor + faucet + SUPPLY.to_bytes(32))
        self.token = boa.loads_abi(json.dumps(compiled["abi"]), name="HostileToken").at(address)
        self.me = address_of(self.token)
        world = self.world = World(token=self.token)
        self.token.transfer(self.token.address, 1000 * CREDIT, sender=world.faucet.text)
        for spender in (world.staking, world.disputes, world.forks, world.availability, world.networks):
            self.act(self.token, "approve", spender.address, 2**256 - 1)
        self.fill_channels()
        self.found_network()
        self.fill_staking()
        self.chains = Chains(world)
        self.network, self.keys = self.chains.populate("a")
        self.fill_availability()
        self.purchase = world.make_receipt(self.honest, CREDIT // 100)

    def act(self, contract, name, *arguments):
        """As any participant: with no callback armed, this must go through."""
        assert self.token.act(contract.address, encode_call(contract, name, arguments))

    def fill_channels(self):
        """One honest channel, and one with the token on both sides; vouchers and refunds need a key each."""
        world = self.world
        self.honest = world.make_config()
        self.mine = replace(
            world.make_config(), payer=self.me, receiver=self.me, receiver_authorizer=world.accuser.address
        )
        self.mine_too = replace(self.mine, receiver_authorizer=self.me, salt=b"\x01" * 32)
        for config in (self.honest, self.mine, self.mine_too):
            world.deposit(config, 5 * CREDIT)
            terms = world.tuple_of(config)
            sender = world.provider.text if config is self.honest else self.token.address
            world.channels.claim([world.make_claim(config, CREDIT)], sender=sender)
            if config is not self.honest:
                self.act(world.channels, "initiateWithdraw", terms, 2 * CREDIT)

    def network_arguments(self, salt):
        return (SALT, CHAIN_ID, NOBODY, salt, [])

    def found_network(self):
        """One that the thief gave up, and whose bond comes back once the stake has unbonded."""
        self.act(self.world.networks, "add", *self.network_arguments(ROOT))
        self.mine_of_old = bytes(self.world.networks.networkAt(0))
        self.act(self.world.networks, "retire", self.mine_of_old)

    def fill_staking(self):
        world = self.world
        self.act(world.staking, "delegate", world.validators[0].text, 20 * CREDIT)
        self.act(world.staking, "undelegate", world.validators[0].text, 5 * CREDIT)
        self.act(world.staking, "stake", 100 * CREDIT)
        self.act(world.staking, "optIn", STORAGE, 10_000)
        self.act(world.staking, "beginUnbond", 40 * CREDIT)
        world.wait(3600)

    def fill_availability(self):
        """A certificate, fees that were earned, and a blob that can be certified."""
        world = self.world
        world.availability.beginEpoch()
        paid = world.certify(world.make_blob(b"paid", begins_at=world.now - 10, expires_at=world.now + 1))
        world.wait(1)
        world.availability.settle([paid.tuples])
        self.blob = world.certify(world.make_blob(b"certified", expires_at=world.now + 600))
        self.blob_too = world.make_blob(b"to be certified", expires_at=world.now + 600)

    # What the thief tries again, by contract

    def channel_calls(self):
        world, terms, other = self.world, self.world.tuple_of(self.mine), self.world.tuple_of(self.mine_too)
        refund = structs.Refund(world.channel_id(self.mine), 0, CREDIT)
        signature = sign_struct(world.accuser.key, world.channels_domain(), refund)
        data = world.collector_data(self.mine, CREDIT, world.buyer, 7)
        return [
            ("settle", self.token.address, self.token.address),
            ("finalizeWithdraw", terms),
            ("finalizeWithdraw", other),
            ("refund", other, CREDIT),
            ("refundWithSignature", terms, CREDIT, 0, signature),
            ("claim", [world.make_claim(self.mine, 2 * CREDIT)]),
            ("deposit", terms, CREDIT, world.channels.address, data),
        ]

    def staking_calls(self):
        me, other = self.token.address, self.world.validators[0].text
        return [
            ("delegate", other, CREDIT),
            ("undelegate", other, CREDIT),
            ("withdrawFrom", other),
            ("reward", me, CREDIT),
            ("setCommission", 7),
            ("jail", STORAGE, me),
            ("unjail", STORAGE),
            ("withdraw",),
            ("stake", CREDIT),
            ("beginUnbond", CREDIT),
            ("optOut", STORAGE),
            ("completeOptOut", STORAGE, me),
            ("evict", STORAGE, me),
            ("slash", STORAGE, me, CREDIT),
        ]

    def beacon_calls(self):
        return [("finalize", 1), ("finalize", 2), ("request",), ("commit", 1, SALT), ("reveal", 1, SALT)]

    def dispute_calls(self):
        steps = [(name, 1) for name in ("draw", "tally", "appeal", "finalize")]
        commitment = keccak256(self.me.rjust(32, b"\0") + ROOT + SALT)
        return [*steps, ("open", *self.open_arguments()), ("commitEvidence", commitment)]

    def fork_calls(self):
        channel_id = self.world.channel_id(self.honest)
        return [
            ("proveDoubleCounter", *self.receipts("counter")),
            ("proveDoubleCounter", *self.receipts("counter", swapped=True)),
            ("proveDoubleRequest", *self.receipts("request_digest")),
            ("proveBatchMismatch", *self.other_leaf()),
            ("challengeClaim", self.world.tuple_of(self.honest)),
            ("showReceipt", channel_id, *self.shown()),
            ("finalizeClaim", channel_id),
        ]

    def availability_calls(self):
        blob, attestation = self.blob, self.world.tuple_of(self.blob.attestation)
        return [
            ("beginEpoch",),
            ("certify", *self.certifiable()),
            ("challenge", attestation, 0),
            ("challenge", attestation, 1),
            ("answer", *self.row_shown()),
            ("finalize", blob.challenge_id(0)),
            ("settle", [blob.tuples]),
            ("withdraw",),
        ]

    def network_calls(self):
        key = self.keys[0].text
        return [
            ("add", *self.network_arguments(SALT)),
            ("retire", self.mine_of_old),
            ("reclaim", self.mine_of_old),
            ("join", self.network, key, b"\0" * 65),
            ("leave", self.network),
            ("beginEpoch", self.network),
            ("bury", key),
        ]

    def lies(self):
        """Arguments of each proof, with what they must be committed under."""
        chains, key = self.chains, self.keys[0]
        headers = [chains.header("a", timestamp=time) for time in (1, 2)]
        checkpoints = [chains.checkpoint(self.network, ZERO32, root=bytes([n]) * 32) for n in (1, 2)]
        update = structs.ValsetUpdate(self.network, 9, 1, ZERO32)
        signed = [sign_struct(key.key, chains.domain, item) for item in (*checkpoints, update)]
        a, b = (self.world.tuple_of(item) for item in checkpoints)
        return {
            "proveHeaders": (headers, (*chains.headers_arguments(self.network, *headers, key)[:-1], SALT)),
            "proveCheckpoints": (checkpoints, (a, signed[0], b, signed[1], SALT)),
            "proveValset": ([update], (self.world.tuple_of(update), signed[2], SALT)),
        }

    def commit_lies(self):
        for items, _ in self.lies().values():
            digests = [hash_struct(item) for item in items]
            second = digests[1] if len(digests) > 1 else ZERO32
            self.act(
                self.world.equivocation,
                "commitEvidence",
                keccak256(self.me.rjust(32, b"\0") + digests[0] + second + SALT),
            )
        self.world.wait(1)

    def equivocation_calls(self):
        return [("commitEvidence", SALT), *((name, *arguments) for name, (_, arguments) in self.lies().items())]

    def certifiable(self):
        return (*self.blob_too.tuples, self.world.sign_rows(self.blob_too))

    def row_shown(self):
        return (*self.blob.tuples, 0, *self.blob.show(0, [0]))

    def calls_of(self, name):
        made = {
            "channels": self.channel_calls,
            "staking": self.staking_calls,
            "beacon": self.beacon_calls,
            "disputes": self.dispute_calls,
            "forks": self.fork_calls,
            "availability": self.availability_calls,
            "networks": self.network_calls,
            "equivocation": self.equivocation_calls,
        }
        contract = getattr(self.world, name)
        views = {
            "channels": ("channels", SALT),
            "staking": ("stakeOf", self.token.address),
            "beacon": ("phase", 1),
            "disputes": ("phaseOf", 1),
            "forks": ("challengeOf", SALT),
            "availability": ("committeeOf", 1),
            "networks": ("networkOf", self.network),
            "equivocation": ("slashBps",),
        }
        # Views and public getters too: nobody reads a state that is half written.
        tried = [*made[name](), views[name], ("token",)]
        return [(contract.address, encode_call(contract, call, arguments)) for call, *arguments in tried]

    def sign(self, receipt):
        return (self.world.tuple_of(receipt), sign_struct(self.world.provider.key, self.world.domain(), receipt))

    def receipts(self, same, *, swapped=False):
        """The provider's receipt and another that agrees in one field."""
        first = self.purchase[2]
        changes = {"fee": 1, "counter": 77, "request_digest": SALT}
        second = replace(first, **{name: value for name, value in changes.items() if name != same})
        pair = (second, first) if swapped else (first, second)
        return (*self.sign(pair[0]), *self.sign(pair[1]))

    def shown(self):
        return self.sign(replace(self.purchase[2], counter=78, charged_cumulative=CREDIT))

    def wrong_fee(self):
        offer = self.world.make_offer()
        request = replace(self.purchase[0], offer_digest=hash_struct(offer))
        receipt = replace(self.purchase[2], request_digest=hash_struct(request))
        return (*self.sign(receipt), self.world.tuple_of(request), offer_tuple(offer))

    def other_leaf(self):
        leaves = [keccak256(b"another leaf")]
        if self.world.receipts.batchCount(self.world.provider.text) == 0:
            root = build_root("deaios/receipts/1", leaves)
            self.world.receipts.publish(1, 1, ZERO32, root, ZERO32, sender=self.world.provider.text)
        return (*self.sign(self.purchase[2]), 0, leaves[0], list(prove_leaf(leaves, 0)))

    def open_arguments(self):
        parts = [self.world.tuple_of(part) if n % 2 == 0 else part for n, part in enumerate(self.purchase)]
        return (*parts, ROOT, MANIFEST, SALT)

    # What must be there before a step of a dispute

    def commit_evidence(self):
        commitment = keccak256(self.me.rjust(32, b"\0") + ROOT + SALT)
        self.act(self.world.disputes, "commitEvidence", commitment)
        self.world.wait(1)

    def open(self):
        self.commit_evidence()
        self.act(self.world.disputes, "open", *self.open_arguments())

    def judged(self, judgement, *, tallied=True):
        self.open()
        self.world.seat_jury(1)
        self.world.vote(1, [judgement] * 3)
        self.world.wait(30)
        if tallied:
            self.world.disputes.tally(1)

    def challenge(self):
        self.act(self.world.forks, "challengeClaim", self.world.tuple_of(self.honest))

    def doubt(self, *, seats=1, answerable=True):
        """The thief challenges the first seats; the beacon gives its value, or not; the time to answer passes."""
        for seat in range(seats):
            self.act(self.world.availability, "challenge", self.world.tuple_of(self.blob.attestation), seat)
        if answerable:
            self.world.run_beacon(self.world.availability.challengeOf(self.blob.challenge_id(0))[2])
        self.world.wait(ROUND_SECONDS + ANSWER_SECONDS)

    def every_seat_caught(self):
        self.doubt(seats=12)
        for seat in range(12):
            self.world.availability.finalize(self.blob.challenge_id(seat))
        self.world.wait(600)

    def silent_beacon(self):
        number = self.world.beacon.request()
        for auditor in self.world.auditors[:2]:
            commitment = self.world.beacon_commitment(number, auditor)
            self.world.beacon.commit(number, commitment, sender=auditor.text)
        self.world.wait(40)

    # What must hold afterwards

    def owed(self):
        world, me = self.world, self.token.address
        channels = [world.channels.channels(world.channel_id(it)) for it in (self.honest, self.mine, self.mine_too)]
        earned = [world.channels.receivers(who, me) for who in (world.provider.text, me)]
        members = (*world.auditors, *world.holders, *world.validators)
        stakes = [sum(world.staking.potsOf(who)) for who in (me, world.provider.text, *(it.text for it in members))]
        networks = [world.networks.networkOf(world.networks.networkAt(n)) for n in range(world.networks.networkCount())]
        disputes = [world.dispute(n) for n in range(1, world.disputes.disputeCount() + 1)]
        open_disputes = [item.bond + item.appealBond for item in disputes if item.stage != 4]
        challenged = world.forks.challengeOf(world.channel_id(self.honest))[3] > 0
        return {
            "channels": sum(balance - claimed for balance, claimed in channels)
            + sum(claimed - settled for claimed, settled in earned),
            "staking": sum(stakes),
            "beacon": 0,
            "disputes": sum(open_disputes),
            "forks": CREDIT * challenged,
            "availability": self.owed_for_rows(),
            "networks": sum(network.bond for network in networks),
            "equivocation": 0,
        }

    def owed_for_rows(self):
        availability, owed = self.world.availability, 0
        for blob in (self.blob, self.blob_too):
            if availability.signersOf(blob.digest) or availability.isForfeited(blob.digest):
                owed += availability.feeOf(blob.head[2], blob.term_s)
            owed += CHALLENGE_BOND * availability.openChallenges(blob.digest)
        members = (self.token.address, *(holder.text for holder in self.world.holders))
        return owed + sum(availability.earnedOf(member) for member in members)

    def held(self):
        return {name: self.token.balanceOf(getattr(self.world, name).address) for name in CONTRACTS}

    def state(self):
        holders = [actor.text for actor in (*self.world.everyone, self.world.deployer)] + [self.token.address]
        return {holder: self.token.balanceOf(holder) for holder in holders} | self.held()


def encode_call(contract, name, arguments):
    return getattr(contract, name).prepare_calldata(*arguments)


@dataclass(frozen=True)
class Move:
    """A call that moves money, and what must have happened before it."""

    contract: str
    name: str
    prepare: Callable
    call: Callable
    case: str = ""

    def __str__(self):
        return f"{self.contract}.{self.name}{self.case}"


def as_thief(contract, name, arguments=lambda heist: ()):
    return lambda heist: heist.act(getattr(heist.world, contract), name, *arguments(heist))


def as_anyone(contract, name, *arguments):
    return lambda heist: getattr(getattr(heist.world, contract), name)(*arguments)


def nothing(heist):
    pass


def thief(contract, name, prepare=nothing, arguments=lambda heist: (), case=""):
    return Move(contract, name, prepare, as_thief(contract, name, arguments), case)


MOVES = (
    thief(
        "channels",
        "deposit",
        arguments=lambda it: (
            it.world.tuple_of(it.mine),
            CREDIT,
            it.world.channels.address,
            it.world.collector_data(it.mine, CREDIT, it.world.buyer, 8),
        ),
    ),
    thief("channels", "settle", arguments=lambda it: (it.token.address, it.token.address)),
    thief("channels", "finalizeWithdraw", arguments=lambda it: (it.world.tuple_of(it.mine),)),
    thief("channels", "refund", arguments=lambda it: (it.world.tuple_of(it.mine_too), CREDIT)),
    Move(
        "channels",
        "refundWithSignature",
        nothing,
        lambda it: it.act(
            it.world.channels,
            "refundWithSignature",
            *next(c for c in it.channel_calls() if len(c) == 5 and c[3] == 0)[1:],
        ),
    ),
    thief("staking", "stake", arguments=lambda it: (CREDIT,)),
    thief("staking", "withdraw"),
    thief("staking", "delegate", arguments=lambda it: (it.world.validators[0].text, CREDIT)),
    thief("staking", "withdrawFrom", arguments=lambda it: (it.world.validators[0].text,)),
    thief("staking", "reward", arguments=lambda it: (it.token.address, CREDIT)),
    thief("networks", "add", arguments=lambda it: it.network_arguments(SALT)),
    thief("networks", "reclaim", arguments=lambda it: (it.mine_of_old,)),
    *(
        thief("equivocation", name, Heist.commit_lies, lambda it, name=name: it.lies()[name][1])
        for name in ("proveHeaders", "proveCheckpoints", "proveValset")
    ),
    Move(
        "staking",
        "slash",
        nothing,
        lambda it: it.world.staking.slash(STORAGE, it.token.address, CREDIT, sender=it.world.deployer.text),
    ),
    Move("beacon", "finalize", Heist.silent_beacon, as_anyone("beacon", "finalize", 1)),
    thief("disputes", "open", Heist.commit_evidence, Heist.open_arguments),
    Move("disputes", "tally", lambda it: it.judged(None, tallied=False), as_anyone("disputes", "tally", 1)),
    thief("disputes", "appeal", lambda it: it.judged(ACQUIT), lambda it: (1,)),
    Move(
        "disputes",
        "finalize",
        lambda it: (it.judged(GUILTY), it.world.wait(8)),
        as_anyone("disputes", "finalize", 1),
        " guilty",
    ),
    Move(
        "disputes",
        "finalize",
        lambda it: (it.judged(ACQUIT), it.world.wait(8)),
        as_anyone("disputes", "finalize", 1),
        " acquitted",
    ),
    thief("forks", "proveDoubleCounter", arguments=lambda it: it.receipts("counter")),
    thief("forks", "proveDoubleRequest", arguments=lambda it: it.receipts("request_digest")),
    thief("forks", "proveBatchMismatch", arguments=Heist.other_leaf),
    thief("forks", "proveWrongFee", arguments=Heist.wrong_fee),
    thief("forks", "challengeClaim", arguments=lambda it: (it.world.tuple_of(it.honest),)),
    thief("forks", "showReceipt", Heist.challenge, lambda it: (it.world.channel_id(it.honest), *it.shown())),
    thief("availability", "certify", arguments=Heist.certifiable),
    thief("availability", "challenge", arguments=lambda it: (it.world.tuple_of(it.blob.attestation), 2)),
    thief("availability", "answer", Heist.doubt, Heist.row_shown),
    thief("availability", "finalize", Heist.doubt, lambda it: (it.blob.challenge_id(0),), " unanswered"),
    thief(
        "availability",
        "finalize",
        lambda it: it.doubt(answerable=False),
        lambda it: (it.blob.challenge_id(0),),
        " without a value",
    ),
    thief("availability", "settle", Heist.every_seat_caught, lambda it: ([it.blob.tuples],)),
    Move(
        "availability",
        "withdraw",
        nothing,
        lambda it: it.world.availability.withdraw(sender=it.world.holders[0].text),
    ),
    thief(
        "forks",
        "finalizeClaim",
        lambda it: (it.challenge(), it.world.wait(60)),
        lambda it: (it.world.channel_id(it.honest),),
    ),
)


@pytest.fixture(scope="module")
def heist(compiled):
    """One suite for all tests; titanoboa's plugin undoes each test's changes."""
    return Heist(compiled)


@pytest.mark.parametrize("move", MOVES, ids=str)
def test_a_contract_is_not_entered_again_while_it_moves_money(heist, move):
    """The same money moves as without the callbacks, and each of them was made and refused."""
    move.prepare(heist)
    calls = heist.calls_of(move.contract)
    with boa.env.anchor():
        move.call(heist)
        expected = heist.state()
    heist.token.arm(calls)
    move.call(heist)
    through, refused = heist.token.outcomes()
    hooks = heist.token.hooks()
    assert hooks >= 1
    assert sum(through) == 0
    assert list(refused[: len(calls)]) == [hooks] * len(calls)
    assert heist.state() == expected


@pytest.mark.parametrize("move", MOVES, ids=str)
def test_other_contracts_stay_solvent_when_entered_meanwhile(heist, move):
    """Calls to the others may go through, as they would just before or after; all can pay what they owe."""
    move.prepare(heist)
    calls = [call for name in CONTRACTS for call in heist.calls_of(name)]
    supply, total = heist.token.totalSupply(), sum(heist.state().values())
    assert supply == total
    heist.token.arm(calls)
    move.call(heist)
    assert heist.token.hooks() >= 1
    assert heist.held() == heist.owed()
    assert heist.token.totalSupply() == sum(heist.state().values()) <= supply


def test_callbacks_into_other_contracts_do_go_through(heist):
    """So that the test above is about something."""
    heist.token.arm(heist.calls_of("staking"))
    as_thief("channels", "settle", lambda it: (it.token.address, it.token.address))(heist)
    through, _ = heist.token.outcomes()
    assert through[0] == 1
    assert heist.held() == heist.owed()


@pytest.mark.parametrize("contract", CONTRACTS)
def test_each_function_that_moves_money_is_tried(world, contract):
    """Found by making each typical call: whoever moves money is in the list above."""
    scene = Scene(world)
    holders = [scene.address(role) for role in sorted(EVERYONE)] + [world.staking.address]
    found = set()
    for row in ROWS:
        if row.contract != contract:
            continue
        with boa.env.anchor():
            world.counter = 0
            arguments = row.prepare(scene)
            before = [world.credit.balanceOf(holder) for holder in holders]
            caller = "stranger" if "stranger" in row.allowed else min(row.allowed)
            getattr(scene.contracts[contract], row.name)(*arguments, sender=scene.address(caller))
            if before != [world.credit.balanceOf(holder) for holder in holders]:
                found.add(row.name)
    assert found == {move.name for move in MOVES if move.contract == contract}
