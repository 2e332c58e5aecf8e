"""One typical call of every function that can change anything, and who may make it.

The table serves `test_contracts_callers.py` (who may call, and whom it can cost money) and `tools/make-gas-snapshot`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from contracts_lies import CHAIN_ID, SALT
from contracts_scene import AMOUNT, EVERYONE, PAYLOAD, Scene
from contracts_world import (
    ACQUIT,
    ANSWER_SECONDS,
    AUDIT,
    COMPUTE,
    CONSENSUS,
    DA,
    EVIDENCE_SECONDS,
    GUILTY,
    JAIL_SECONDS,
    NETWORK_EPOCH_SECONDS,
    NOBODY,
    ROUND_SECONDS,
    STORAGE,
    TRUST_SECONDS,
    UNBONDING,
    ZERO32,
    make_actor,
    struct_tuple,
)
from networks_world import message_tuple, sign_by

from deaios.ledger import structs
from deaios.ledger.eip712 import hash_struct, sign_struct
from deaios.ledger.sponsorship import SponsorTerms
from deaios.primitives.hashing import keccak256
from deaios.primitives.units import CREDIT


@dataclass(frozen=True)
class Row:
    """One function: how to make a call to it possible, and who gets through then."""

    function: str
    """contract.name/number of arguments"""
    prepare: Callable[[Scene], tuple[Any, ...]]
    allowed: frozenset[str] = EVERYONE
    refusals: tuple[str, ...] = ()
    costs: frozenset[str] = field(default=frozenset())
    """Who but the caller has less money after a stranger's call."""
    case: str = ""
    """Tells rows of one function apart."""

    @property
    def contract(self) -> str:
        return self.function.split(".")[0]

    @property
    def name(self) -> str:
        return re.split(r"[./]", self.function)[1]


def after(step: Callable[[Scene], Any], arguments: Callable[[Scene, Any], tuple[Any, ...]]) -> Callable[[Scene], Any]:
    """Arguments made from what a step returned."""
    return lambda scene: arguments(scene, step(scene))


def some(*roles: str) -> frozenset[str]:
    return frozenset(roles)


NOT_CONTROLLER = ("identity: caller may not act for this agent",)
CONTROLLERS = some("provider", "accuser", "buyer")
NOT_JUDGE = ("staking: caller is not a judge of this service",)
PAYER_SIDE, RECEIVER_SIDE = some("buyer", "signer"), some("provider", "cashier")
NOT_PAYER_SIDE = ("channels: caller is not on the payer's side",)
NOT_RECEIVER_SIDE = ("channels: caller is not on the receiver's side",)


def open_arguments(scene: Scene) -> tuple[Any, ...]:
    purchase = scene.purchase()
    scene.world.commit_evidence(scene.accuser)
    parts = [scene.world.tuple_of(part) if index % 2 == 0 else part for index, part in enumerate(purchase)]
    return (*parts, b"\x07" * 32, b"\x09" * 32, b"\x08" * 32)


def silent_jury(scene: Scene) -> int:
    dispute_id = scene.seated()
    scene.world.wait(90)
    return dispute_id


def reveal_arguments(scene: Scene) -> tuple[Any, ...]:
    dispute_id = scene.seated()
    for juror in scene.world.jury(dispute_id):
        commitment = hash_struct(scene.world.verdict(dispute_id, juror, GUILTY))
        scene.world.disputes.commitVerdict(dispute_id, commitment, sender=juror.text)
    verdict = scene.world.verdict(dispute_id, scene.juror, GUILTY)
    return (dispute_id, GUILTY, verdict.evidence_root, verdict.salt)


def appeal_window_over(scene: Scene) -> tuple[int]:
    dispute_id = scene.judged(GUILTY)
    scene.world.wait(8)
    return (dispute_id,)


def stake_without_service(scene: Scene) -> tuple[Any, ...]:
    scene.world.staking.stake(CREDIT, sender=scene.accuser.text)
    return (STORAGE, 10_000)


def leaving(scene: Scene) -> tuple[Any, ...]:
    scene.world.staking.optOut(COMPUTE, sender=scene.provider.text)
    scene.world.wait(3600)
    return (COMPUTE, scene.provider.text)


def below_minimum(scene: Scene) -> tuple[Any, ...]:
    scene.world.staking.beginUnbond(6 * CREDIT, sender=scene.juror.text)
    return (AUDIT, scene.juror.text)


def unbonded(scene: Scene) -> tuple[Any, ...]:
    scene.world.staking.beginUnbond(CREDIT, sender=scene.provider.text)
    scene.world.wait(3600)
    return ()


def beacon_unanswered(scene: Scene) -> tuple[int]:
    number = scene.committed()
    scene.world.wait(20)
    return (number,)


def allowance_for_accuser(scene: Scene) -> tuple[Any, ...]:
    world = scene.world
    for contract in (world.staking, world.disputes, world.forks, world.availability, world.networks):
        scene.world.approve(scene.buyer, contract, 0)
    scene.world.credit.approve(scene.accuser.text, AMOUNT, sender=scene.buyer.text)
    return (scene.buyer.text, scene.spectator.text, AMOUNT)


def challenge_over(scene: Scene) -> tuple[Any, ...]:
    scene.challenged()
    scene.world.wait(60)
    return (scene.channel_id,)


def receipt_for_challenge(scene: Scene) -> tuple[Any, ...]:
    scene.challenged()
    receipt = scene.world.make_receipt(scene.config, charged_cumulative=AMOUNT)[2]
    return (scene.channel_id, scene.world.tuple_of(receipt), scene.sign(receipt))


def delegated(scene: Scene) -> tuple[Any, ...]:
    scene.world.staking.delegate(scene.validator.text, CREDIT, sender=scene.backer.text)
    return (scene.validator.text, AMOUNT)


def undelegated(scene: Scene) -> tuple[Any, ...]:
    scene.world.staking.undelegate(*delegated(scene), sender=scene.backer.text)
    scene.world.wait(UNBONDING)
    return (scene.validator.text,)


def jailed(scene: Scene) -> tuple[Any, ...]:
    scene.world.staking.jail(CONSENSUS, scene.validator.text, sender=scene.world.equivocation.address)
    scene.world.wait(JAIL_SECONDS)
    return (CONSENSUS,)


def founded(scene: Scene) -> tuple[bytes]:
    return (scene.chains.add("a"),)


def retired(scene: Scene) -> tuple[bytes]:
    (network,) = founded(scene)
    scene.world.networks.retire(network, sender=scene.stranger.text)
    scene.world.wait(TRUST_SECONDS + EVIDENCE_SECONDS)
    return (network,)


def assigned(scene: Scene) -> tuple[Any, ...]:
    (network,), key = founded(scene), make_actor("a key")
    return (network, key.text, scene.chains.consent(key, network, scene.validator))


def epoch_over(scene: Scene) -> tuple[bytes]:
    network, _ = scene.chains.populate("a")
    scene.world.wait(NETWORK_EPOCH_SECONDS)
    return (network,)


def lie_committed(scene: Scene, kind: str) -> tuple[Any, ...]:
    """Evidence that the accuser committed to."""
    chains = scene.chains
    network, keys = chains.populate("a")
    if kind == "valset":
        lie = structs.ValsetUpdate(network, 2, 1, ZERO32)
        digests = hash_struct(lie), ZERO32
        arguments = (struct_tuple(lie), sign_struct(keys[0].key, chains.domain, lie), SALT)
    elif kind == "headers":
        a, b = chains.header("a"), chains.header("a", timestamp=1001)
        digests = hash_struct(a), hash_struct(b)
        arguments = chains.headers_arguments(network, a, b, keys[0])
    else:
        a, b = (chains.checkpoint(network, ZERO32, root=bytes([number]) * 32) for number in (1, 2))
        digests = hash_struct(a), hash_struct(b)
        signatures = [sign_struct(keys[0].key, chains.domain, item) for item in (a, b)]
        arguments = (struct_tuple(a), signatures[0], struct_tuple(b), signatures[1], SALT)
    chains.commit(*digests)
    scene.world.wait(1)
    return arguments


def burned(scene: Scene) -> tuple[Any, ...]:
    scene.world.credit.burn(CREDIT, sender=scene.faucet.text)
    return (scene.stranger.text, AMOUNT)


def purse_abroad(scene: Scene) -> None:
    root = scene.abroad.root
    root.credit.transfer(scene.buyer.text, CREDIT, sender=scene.abroad.holder.text)
    root.credit.approve(root.bridge.address, CREDIT, sender=scene.buyer.text)


def sent_abroad(scene: Scene) -> tuple[Any, ...]:
    purse_abroad(scene)
    return (scene.island.id, scene.buyer.text, AMOUNT)


def came_back(scene: Scene) -> tuple[bytes, list[bytes]]:
    """A transfer to the island and back, whose last message waits; root and path."""
    root, island = scene.abroad.root, scene.island
    for place in (root, island):
        # What another row's outbox said is undone, and so is the memory of it.
        place.trees.clear()
        place.messages.clear()
    purse_abroad(scene)
    root.send_credit(island, scene.buyer, scene.buyer, CREDIT)
    island.deliver(root, 0, island.accept(root))
    island.send_credit(root, scene.buyer, scene.spectator, AMOUNT)
    tree = island.trees[root.id]
    return tree.root(1), list(tree.prove(0, 1))


def checkpoint_signed(scene: Scene) -> tuple[Any, ...]:
    top, _ = came_back(scene)
    island = scene.island
    checkpoint = structs.Checkpoint(island.id, scene.abroad.root.id, 1, top)
    return struct_tuple(checkpoint), island.words, *sign_by(island.actors, (0, 1, 2), scene.abroad.domain, checkpoint)


def message_accepted(scene: Scene) -> tuple[Any, ...]:
    top, path = came_back(scene)
    root = scene.abroad.root
    root.accept(scene.island, places=(0, 1, 2))
    return message_tuple(scene.island.messages[root.id][0]), top, path


def message_heard(scene: Scene) -> tuple[Any, ...]:
    came_back(scene)
    message = scene.island.messages[scene.abroad.root.id][0]
    return scene.island.id, scene.island.bridge.address, 0, message.payload


def bridge_named(scene: Scene) -> tuple[Any, ...]:
    scene.abroad.registry.add(b"\x0b" * 32, scene.buyer.text)
    return b"\x0b" * 32, scene.spectator.text


def update_signed(scene: Scene) -> tuple[Any, ...]:
    island = scene.island
    update = island.make_update(2)
    return struct_tuple(update), island.words, *sign_by(island.actors, (0, 1, 2), scene.abroad.domain, update)


NOT_COMMITTED = ("equivocation: evidence was not committed",)


def row_shown(scene: Scene) -> tuple[Any, ...]:
    blob, seat = scene.doubted()
    picks = scene.world.availability.picksOf(blob.challenge_id(seat), blob.head[2])
    return (*blob.tuples, seat, *blob.show(seat, picks))


def row_not_shown(scene: Scene, *, answerable: bool) -> tuple[Any, ...]:
    blob, seat = scene.doubted(answerable=answerable)
    scene.world.wait(ROUND_SECONDS + ANSWER_SECONDS)
    return (blob.challenge_id(seat),)


def every_seat_caught(scene: Scene) -> tuple[Any, ...]:
    blob = scene.certificate(b"a blob")
    ids = [scene.world.challenge_row(blob, seat, scene.accuser) for seat in range(scene.world.seats)]
    scene.world.run_beacon(scene.world.availability.challengeOf(ids[0])[2])
    scene.world.wait(300)
    for challenge_id in ids:
        scene.world.availability.finalize(challenge_id, sender=scene.stranger.text)
    return ([blob.tuples],)


def fees_earned(scene: Scene) -> tuple[Any, ...]:
    scene.world.availability.settle(*scene.certificates(1), sender=scene.stranger.text)
    return ()


def move_agent(scene: Scene, agent_id: int) -> tuple[Any, ...]:
    return (scene.provider.text, scene.stranger.text, agent_id)


def pledged(scene: Scene) -> Any:
    """The newcomer pledges to the backer, who lends by itself."""
    newcomer, backer, deadline = make_actor("newcomer"), scene.backer.text, scene.world.now + 100
    signature = scene.world.sign_pledge(newcomer, backer, backer, AMOUNT, ZERO32, deadline)
    return newcomer.text, backer, AMOUNT, ZERO32, deadline, signature


def indebted(scene: Scene) -> Any:
    """The provider earned more than it owes."""
    world, backer, deadline = scene.world, scene.backer.text, scene.world.now + 100
    signature = world.sign_pledge(scene.provider, backer, backer, AMOUNT - 1, ZERO32, deadline)
    world.channels.pledge(
        scene.provider.text, backer, AMOUNT - 1, ZERO32, deadline, signature, sender=scene.backer.text
    )
    scene.claimed()
    return scene.provider.text, world.credit.address


def sponsor_signed(scene: Scene) -> Any:
    terms = SponsorTerms(scene.backer.address, CREDIT // 2, CREDIT, CREDIT, 1000)
    for role in sorted(EVERYONE):
        scene.world.credit.approve(scene.world.sponsorship.address, 2 * CREDIT, sender=scene.address(role))
    return scene.world.sponsor_arguments(make_actor("newcomer"), terms)


def seed_staked(scene: Scene) -> Any:
    newcomer = make_actor("newcomer")
    scene.world.sponsorship.sponsor(*sponsor_signed(scene), sender=scene.backer.text)
    scene.world.approve(newcomer, scene.world.staking)
    scene.world.staking.stake(CREDIT // 2, sender=newcomer.text)
    return (newcomer.text,)


def term_over(scene: Scene) -> Any:
    arguments = seed_staked(scene)
    scene.world.sponsorship.back(*arguments, sender=scene.stranger.text)
    scene.world.wait(1000)
    return arguments


def recalled(scene: Scene) -> Any:
    arguments = term_over(scene)
    scene.world.sponsorship.recall(*arguments, sender=scene.backer.text)
    scene.world.wait(UNBONDING)
    return arguments


def settlement_deposited(scene: Scene) -> None:
    scene.world.settlement_deposit(scene.config, CREDIT)


def settlement_row(scene: Scene) -> Any:
    return scene.world.settlement_claim(scene.config, AMOUNT, signer=scene.signer)


def settlement_claimed(scene: Scene) -> tuple[Any, ...]:
    settlement_deposited(scene)
    scene.world.settlement.claim([settlement_row(scene)], sender=scene.cashier.text)
    return scene.provider.text, scene.world.credit.address


def settlement_leaving(scene: Scene) -> None:
    settlement_deposited(scene)
    scene.world.settlement.initiateWithdraw(scene.terms, AMOUNT, sender=scene.buyer.text)
    scene.world.wait(900)


def settlement_batch(scene: Scene) -> tuple[Any, ...]:
    settlement_deposited(scene)
    rows = [settlement_row(scene)]
    return rows, scene.cashier.key.sign_digest(bytes(scene.world.settlement.getClaimBatchDigest(rows)))


def settlement_refund(scene: Scene) -> tuple[Any, ...]:
    settlement_deposited(scene)
    digest = bytes(scene.world.settlement.getRefundDigest(scene.world.settlement_id(scene.config), 0, AMOUNT))
    return scene.terms, AMOUNT, 0, scene.cashier.key.sign_digest(digest)


def settlement_collected(scene: Scene) -> tuple[Any, ...]:
    data = scene.world.settlement_data(scene.config, AMOUNT, scene.buyer)
    return scene.buyer.text, scene.world.credit.address, AMOUNT, scene.world.settlement_id(scene.config), data


ROWS = (
    Row("credit.transfer/2", lambda scene: (scene.spectator.text, AMOUNT)),
    Row("credit.transferFrom/3", allowance_for_accuser, some("accuser"), ("credit: allowance is too small",)),
    Row("credit.approve/2", lambda scene: (scene.spectator.text, AMOUNT)),
    Row("credit.burn/1", lambda scene: (AMOUNT,)),
    Row(
        "credit.transferWithAuthorization/9",
        lambda scene: scene.transfer_authorization("TransferWithAuthorization"),
        costs=some("buyer"),
    ),
    Row(
        "credit.receiveWithAuthorization/9",
        lambda scene: scene.transfer_authorization("ReceiveWithAuthorization"),
        some("spectator"),
        ("credit: caller is not the receiver",),
    ),
    Row("credit.cancelAuthorization/5", Scene.cancellation),
    Row("credit.permit/7", Scene.allowance),
    Row("identities.register/0", lambda scene: ()),
    Row("identities.register/1", lambda scene: ("http://b",)),
    Row("identities.register/2", lambda scene: ("http://b", [("role", b"auditor")])),
    Row("identities.setAgentURI/2", after(Scene.agent, lambda _, agent: (agent, "x")), CONTROLLERS, NOT_CONTROLLER),
    Row("identities.setMetadata/3", after(Scene.agent, lambda _, it: (it, "k", b"v")), CONTROLLERS, NOT_CONTROLLER),
    Row("identities.setAgentWallet/4", Scene.wallet_consent, CONTROLLERS, NOT_CONTROLLER),
    Row("identities.unsetAgentWallet/1", after(Scene.agent, lambda _, agent: (agent,)), CONTROLLERS, NOT_CONTROLLER),
    Row(
        "identities.approve/2",
        after(Scene.agent, lambda scene, agent: (scene.stranger.text, agent)),
        some("provider", "accuser"),
        ("identity: caller is not the owner",),
    ),
    Row("identities.setApprovalForAll/2", lambda scene: (scene.spectator.text, True)),
    Row("identities.transferFrom/3", after(Scene.agent, move_agent), CONTROLLERS, NOT_CONTROLLER),
    Row("identities.safeTransferFrom/3", after(Scene.agent, move_agent), CONTROLLERS, NOT_CONTROLLER),
    Row(
        "identities.safeTransferFrom/4",
        after(Scene.agent, lambda scene, agent: (*move_agent(scene, agent), b"data")),
        CONTROLLERS,
        NOT_CONTROLLER,
    ),
    Row("catalogue.publish/1", lambda scene: (b"a record",)),
    Row("receipts.publish/5", lambda scene: (1, 2, ZERO32, b"\x01" * 32, ZERO32)),
    Row(
        "channels.deposit/4",
        lambda scene: (
            scene.terms,
            AMOUNT,
            scene.world.channels.address,
            scene.world.collector_data(scene.config, AMOUNT, scene.buyer),
        ),
        costs=some("buyer"),
    ),
    Row("channels.claim/1", after(Scene.deposit, lambda it, _: ([it.claim_row()],)), RECEIVER_SIDE, NOT_RECEIVER_SIDE),
    Row("channels.claimWithSignature/2", Scene.batch_signature),
    Row(
        "channels.settle/2",
        after(Scene.claimed, lambda scene, _: (scene.provider.text, scene.world.credit.address)),
        costs=some("channels"),
    ),
    Row("channels.initiateWithdraw/2", after(Scene.deposit, lambda it, _: (it.terms, 1)), PAYER_SIDE, NOT_PAYER_SIDE),
    Row("channels.finalizeWithdraw/1", after(Scene.withdrawing, lambda it, _: (it.terms,)), PAYER_SIDE, NOT_PAYER_SIDE),
    Row("channels.refund/2", after(Scene.deposit, lambda it, _: (it.terms, 1)), RECEIVER_SIDE, NOT_RECEIVER_SIDE),
    Row("channels.refundWithSignature/4", Scene.refund_signature, costs=some("channels")),
    Row("staking.stake/1", lambda scene: (AMOUNT,)),
    Row(
        "staking.optIn/2",
        stake_without_service,
        some("accuser"),
        ("staking: power is below the service's minimum", "staking: caps exceed the whole stake"),
    ),
    Row("staking.optOut/1", lambda scene: (COMPUTE,), some("provider"), ("staking: not in this service",)),
    Row("staking.completeOptOut/2", leaving),
    Row("staking.evict/2", below_minimum),
    Row(
        "staking.beginUnbond/1",
        lambda scene: (1,),
        some("provider", "juror", "spectator", "holder", "validator"),
        ("staking: amount exceeds the stake",),
    ),
    Row("staking.withdraw/0", unbonded, some("provider"), ("staking: nothing is unbonding",)),
    Row("staking.delegate/2", lambda scene: (scene.validator.text, AMOUNT)),
    Row(
        "staking.undelegate/2",
        delegated,
        some("validator", "backer"),
        ("staking: amount exceeds the stake",),
    ),
    Row("staking.withdrawFrom/1", undelegated, some("backer"), ("staking: nothing is unbonding",)),
    Row("staking.reward/2", lambda scene: (scene.validator.text, AMOUNT)),
    Row("staking.setCommission/1", lambda scene: (500,)),
    Row(
        "staking.jail/2",
        lambda scene: (CONSENSUS, scene.validator.text),
        some("equivocation"),
        NOT_JUDGE,
    ),
    Row("staking.unjail/1", jailed, some("validator"), ("staking: operator is not jailed",)),
    Row(
        "staking.slash/3",
        lambda it: (COMPUTE, it.provider.text, 1),
        some("disputes", "forks"),
        NOT_JUDGE,
        case="compute",
    ),
    Row("staking.slash/3", lambda it: (AUDIT, it.juror.text, 1), some("disputes", "beacon"), NOT_JUDGE, case="audit"),
    Row("staking.slash/3", lambda it: (DA, it.holder.text, 1), some("availability"), NOT_JUDGE, case="da"),
    Row("staking.slash/3", lambda it: (STORAGE, it.provider.text, 1), some("deployer"), NOT_JUDGE, case="storage"),
    Row(
        "staking.slash/3",
        lambda it: (CONSENSUS, it.validator.text, 1),
        some("equivocation"),
        NOT_JUDGE,
        case="consensus",
    ),
    Row("beacon.request/0", lambda scene: ()),
    Row(
        "beacon.commit/2",
        after(Scene.requested, lambda _, number: (number, b"\x01" * 32)),
        some("juror", "spectator"),
        ("beacon: caller is not a staked auditor",),
    ),
    Row(
        "beacon.reveal/2",
        after(Scene.committed, lambda scene, number: (number, keccak256(b"secret" + scene.juror.address))),
        some("juror"),
        ("beacon: secret does not open the commitment",),
    ),
    Row("beacon.finalize/1", beacon_unanswered, costs=some("juror")),
    Row("disputes.commitEvidence/1", lambda scene: (b"\x01" * 32,)),
    Row("disputes.open/7", open_arguments, some("accuser"), ("disputes: evidence was not committed",)),
    Row(
        "disputes.draw/1",
        after(Scene.opened, lambda scene, number: (scene.world.run_beacon(1), (number,))[1]),
    ),
    Row(
        "disputes.commitVerdict/2",
        after(Scene.seated, lambda _, number: (number, b"\x01" * 32)),
        some("juror"),
        ("disputes: caller is not a juror",),
    ),
    Row(
        "disputes.revealVerdict/4",
        reveal_arguments,
        some("juror"),
        ("disputes: verdict does not open the commitment",),
    ),
    Row("disputes.tally/1", after(silent_jury, lambda _, number: (number,)), costs=some("juror")),
    Row(
        "disputes.appeal/1",
        lambda scene: (scene.judged(GUILTY),),
        some("provider"),
        ("disputes: caller did not lose",),
        case="guilty",
    ),
    Row(
        "disputes.appeal/1",
        lambda scene: (scene.judged(ACQUIT),),
        some("accuser"),
        ("disputes: caller did not lose",),
        case="acquitted",
    ),
    Row("disputes.finalize/1", appeal_window_over, costs=some("provider", "disputes")),
    Row("forks.proveDoubleCounter/4", lambda it: it.two_receipts("counter"), costs=some("provider")),
    Row("forks.proveDoubleRequest/4", lambda it: it.two_receipts("request_digest"), costs=some("provider")),
    Row("forks.proveBatchMismatch/5", Scene.other_leaf, costs=some("provider")),
    Row("forks.proveWrongFee/4", Scene.wrong_fee, costs=some("provider")),
    Row("forks.challengeClaim/1", after(Scene.claimed, lambda scene, _: (scene.terms,))),
    Row("forks.showReceipt/3", receipt_for_challenge, costs=some("forks")),
    Row("forks.finalizeClaim/1", challenge_over, costs=some("provider", "forks")),
    Row("availability.beginEpoch/0", lambda scene: ()),
    Row("availability.certify/3", after(Scene.blob, lambda it, blob: (*blob.tuples, it.world.sign_rows(blob)))),
    Row(
        "availability.challenge/2",
        after(Scene.certificate, lambda _, blob: (struct_tuple(blob.attestation), 5)),
    ),
    Row("availability.answer/5", row_shown, costs=some("availability")),
    Row(
        "availability.finalize/1",
        lambda it: row_not_shown(it, answerable=True),
        costs=some("holder", "availability"),
        case="unanswered",
    ),
    Row(
        "availability.finalize/1",
        lambda it: row_not_shown(it, answerable=False),
        costs=some("availability"),
        case="no value",
    ),
    Row("availability.settle/1", lambda it: it.certificates(1), case="1"),
    Row("availability.settle/1", lambda it: it.certificates(16), case="16"),
    Row("availability.settle/1", every_seat_caught, costs=some("availability"), case="nobody earned it"),
    Row("availability.withdraw/0", fees_earned, some("holder"), ("availability: nothing is earned",)),
    Row("networks.add/5", lambda it: (it.chains.genesis("b"), CHAIN_ID, NOBODY, ZERO32, [AUDIT])),
    Row("networks.retire/1", founded, some("stranger"), ("networks: caller is not the founder",)),
    Row("networks.reclaim/1", retired, costs=some("networks")),
    Row("networks.join/3", assigned, some("validator"), ("networks: the key did not sign",)),
    Row(
        "networks.leave/1",
        lambda it: (it.chains.populate("a")[0],),
        some("validator"),
        ("networks: operator has no key here",),
    ),
    Row("networks.beginEpoch/1", epoch_over),
    Row(
        "networks.bury/1",
        lambda it: (it.chains.populate("a")[1][0].text,),
        some("equivocation"),
        ("networks: caller is not the judge of keys",),
    ),
    Row("equivocation.commitEvidence/1", lambda scene: (b"\x01" * 32,)),
    Row("equivocation.proveHeaders/6", lambda it: lie_committed(it, "headers"), some("accuser"), NOT_COMMITTED),
    Row("equivocation.proveCheckpoints/5", lambda it: lie_committed(it, "checkpoints"), some("accuser"), NOT_COMMITTED),
    Row("equivocation.proveValset/3", lambda it: lie_committed(it, "valset"), some("accuser"), NOT_COMMITTED),
    Row("credit.mint/2", burned, some("deployer"), ("credit: caller is not the bridge",)),
    Row("outbox.send/3", lambda it: (it.island.id, it.spectator.text, PAYLOAD[:96])),
    Row("inbox.accept/4", checkpoint_signed),
    Row("inbox.deliver/3", message_accepted),
    Row("bridge.connect/2", bridge_named, some("buyer"), ("bridge: caller did not found the network",)),
    Row("bridge.send/3", sent_abroad, some("buyer"), ("credit: allowance is too small",)),
    Row("bridge.receiveMessage/4", message_heard, some("inbox"), ("bridge: caller is not the inbox",)),
    Row("mirror.update/4", update_signed),
    Row("channels.pledge/6", pledged, some("backer"), ("channels: pledge's signature",)),
    Row("channels.settle/2", indebted, costs=some("channels"), case="in debt"),
    Row("sponsorship.sponsor/7", sponsor_signed, some("backer"), ("channels: pledge's signature",)),
    Row("sponsorship.back/1", seed_staked),
    Row(
        "sponsorship.recall/1",
        term_over,
        some("backer"),
        ("sponsorship: caller is not the sponsor",),
    ),
    Row("sponsorship.collect/1", recalled),
    Row("settlement.multicall/1", lambda scene: ([],)),
    Row(
        "settlement.deposit/4",
        lambda scene: (
            scene.terms,
            AMOUNT,
            scene.world.collector.address,
            scene.world.settlement_data(scene.config, AMOUNT, scene.buyer),
        ),
        costs=some("buyer"),
    ),
    Row(
        "settlement.claim/1",
        after(settlement_deposited, lambda it, _: ([settlement_row(it)],)),
        RECEIVER_SIDE,
        ("settlement: caller is not on the receiver's side",),
    ),
    Row("settlement.claimWithSignature/2", settlement_batch),
    Row("settlement.settle/2", settlement_claimed, costs=some("settlement")),
    Row(
        "settlement.initiateWithdraw/2",
        after(settlement_deposited, lambda it, _: (it.terms, 1)),
        PAYER_SIDE,
        ("settlement: caller is not on the payer's side",),
    ),
    Row(
        "settlement.finalizeWithdraw/1",
        after(settlement_leaving, lambda it, _: (it.terms,)),
        PAYER_SIDE,
        ("settlement: caller is not on the payer's side",),
    ),
    Row(
        "settlement.refund/2",
        after(settlement_deposited, lambda it, _: (it.terms, 1)),
        RECEIVER_SIDE,
        ("settlement: caller is not on the receiver's side",),
    ),
    Row("settlement.refundWithSignature/4", settlement_refund, costs=some("settlement")),
    Row(
        "collector.collect/5",
        settlement_collected,
        some("settlement"),
        ("collector: caller is not the settlement",),
    ),
)
