"""The contract suite on an in-memory EVM, deployed from the shipped artifacts, and the people who use it.

Tests get it from the fixtures of `conftest.py`; `soak/contracts.py` loads it by its path.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boa
from eth.exceptions import Revert
from eth_abi import decode, encode

import deaios.ledger
from deaios.coding.matrix import CodedMatrix, prove_leaf, prove_row
from deaios.coding.matrix import encode as encode_rows
from deaios.coding.parameters import build_committee_profile
from deaios.ledger import structs
from deaios.ledger.committee import Committee, decode_committee
from deaios.ledger.eip712 import Domain, hash_struct, hash_typed_data, sign_struct
from deaios.ledger.sponsorship import Pledge, SponsorTerms
from deaios.ledger.x402 import COLLECTOR, SETTLEMENT, settlement_domain
from deaios.primitives.hashing import keccak256, sha256
from deaios.primitives.keys import ADDRESS_SIZE, Address, PrivateKey, checksum_address
from deaios.primitives.units import CREDIT

ARTIFACTS = Path(deaios.ledger.__file__).parent / "artifacts"
COMPUTE = keccak256(b"compute")
AUDIT = keccak256(b"audit")
STORAGE = keccak256(b"storage")
DA = keccak256(b"da")
CONSENSUS = keccak256(b"consensus")
SUPPLY = 1_000_000 * CREDIT
UNBONDING = 3600
JAIL_SECONDS = 600
PAYOUT_SECONDS, PAYOUT_MAX = 1000, 10_000 * CREDIT
VALIDATOR_STAKES = (100 * CREDIT, 60 * CREDIT, 40 * CREDIT)
VALIDATOR_MIN = 20 * CREDIT
NETWORK_EPOCH_SECONDS, TRUST_SECONDS, EVIDENCE_SECONDS = 100, 1000, 500
NETWORK_BOND = 7 * CREDIT
SLASH_BPS = 5000
CLAIM_SECONDS = 60
CLAIM_BOND = CREDIT
FORK_PENALTY = 20 * CREDIT
BEACON_COMMIT, BEACON_REVEAL, BEACON_PENALTY = 20, 20, CREDIT
PROVIDER_STAKE, AUDITOR_STAKE = 50 * CREDIT, 20 * CREDIT
AUDITOR_MIN = 15 * CREDIT
"""A few penalties below the stake: who was silent once stays eligible."""
HOLDER_STAKES = (70 * CREDIT, 60 * CREDIT, 50 * CREDIT, 40 * CREDIT)
HOLDER_MIN = 10 * CREDIT
SEATS = 12
EPOCH_SECONDS, TERM_SECONDS_MAX, ANSWER_SECONDS = 300, 600, 30
CHALLENGE_BOND, ROW_PENALTY = CREDIT, 10 * CREDIT
FEE_BASE, FEE_GIB_DAY = 100, 100 * CREDIT
ROUND_SECONDS = 4 * (BEACON_COMMIT + BEACON_REVEAL)
"""Longest beacon round."""
ZERO32 = bytes(32)
NOBODY = "0x" + "00" * 20
ACQUIT, GUILTY, NO_QUORUM = 1, 2, 3


@dataclass(frozen=True)
class Settings:
    """Constructor argument of Disputes, in its field order."""

    jury_size: int = 3
    open_blocks: int = 100
    commit_seconds: int = 60
    reveal_seconds: int = 30
    appeal_seconds: int = 8
    bond: int = 2 * CREDIT
    appeal_bond: int = 4 * CREDIT
    slash_floor: int = 10 * CREDIT
    juror_fee: int = CREDIT // 5
    juror_penalty: int = CREDIT

    def astuple(self) -> tuple[int, ...]:
        return tuple(self.__dict__.values())


@dataclass(frozen=True)
class Actor:
    """Someone with a key."""

    key: PrivateKey

    @property
    def address(self) -> Address:
        return self.key.address

    @property
    def text(self) -> str:
        return checksum_address(self.key.address)


def make_actor(name: str) -> Actor:
    return Actor(PrivateKey(keccak256(b"actor/" + name.encode())))


def offer_tuple(offer: structs.Offer) -> tuple[Any, ...]:
    """An offer as `Forks` takes it: its URL as EIP-712 hashes it."""
    return (*struct_tuple(offer)[:-2], keccak256(offer.url.encode()), offer.valid_until)


def struct_tuple(struct: object) -> tuple[Any, ...]:
    """A struct as the ABI tuple of its fields; addresses, the only fields of 20 bytes, as text."""
    return tuple(
        checksum_address(Address(value)) if isinstance(value, bytes) and len(value) == ADDRESS_SIZE else value
        for value in struct.__dict__.values()
    )


@dataclass(frozen=True)
class Blob:
    """A coded payload and what a committee says about it."""

    matrix: CodedMatrix
    attestation: Any

    @property
    def digest(self) -> bytes:
        return hash_struct(self.attestation)

    @property
    def head(self) -> tuple[bytes, bytes, int]:
        return self.matrix.root, sha256(self.matrix.y), self.matrix.head.parameters.length

    @property
    def term_s(self) -> int:
        return int(self.attestation.expires_at - self.attestation.begins_at)

    @property
    def tuples(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return struct_tuple(self.attestation), self.head

    def challenge_id(self, seat: int) -> bytes:
        return keccak256(self.digest + seat.to_bytes(32))

    def show(self, seat: int, picks: Sequence[int]) -> tuple[list[bytes], list[list[bytes]]]:
        """Leaves of a row and their paths."""
        row, proof = bytes(self.matrix.get_row(seat)), prove_row(self.matrix, seat)
        paths = [list(prove_leaf(self.matrix.head.parameters, row, proof, pick)) for pick in picks]
        return [row[1024 * pick : 1024 * (pick + 1)] for pick in picks], paths


class DeploymentReverted(Exception):
    """A constructor refused its arguments; the message is its reason."""


def deploy(name: str, *arguments: object, sender: str) -> Any:
    artifact = json.loads((ARTIFACTS / f"{name}.json").read_text())
    constructor = [entry for entry in artifact["abi"] if entry["type"] == "constructor"]
    types = [abi_type(item) for item in constructor[0]["inputs"]] if constructor else []
    code = bytes.fromhex(artifact["bytecode"][2:]) + encode(types, arguments)
    try:
        address, runtime = boa.env.deploy_code(bytecode=code, sender=sender)
    except Revert as error:
        raise DeploymentReverted(decode(["string"], error.args[0][4:])[0]) from error
    assert runtime, f"{name} was not deployed"
    return boa.loads_abi(json.dumps(artifact["abi"]), name=name).at(address)


def place(name: str, address: Address) -> Any:
    """A contract without a constructor where the first block of a chain puts it."""
    artifact = json.loads((ARTIFACTS / f"{name}.json").read_text())
    boa.env.set_code(checksum_address(address), bytes.fromhex(artifact["bytecode"][2:])[-artifact["runtimeSize"] :])
    return boa.loads_abi(json.dumps(artifact["abi"]), name=name).at(checksum_address(address))


def abi_type(item: Mapping[str, Any]) -> str:
    if not item["type"].startswith("tuple"):
        return str(item["type"])
    return "(" + ",".join(abi_type(part) for part in item["components"]) + ")" + item["type"][len("tuple") :]


def create_address(sender: Address, nonce: int) -> str:
    """Where CREATE puts a contract; nonces below 128 only."""
    body = b"\x94" + sender + (bytes([nonce]) if nonce else b"\x80")
    return checksum_address(Address(keccak256(bytes([0xC0 + len(body)]) + body)[-20:]))


class World:
    """One deployed suite, over Credit or another token that gives the faucet its supply."""

    def __init__(
        self,
        settings: Settings | None = None,
        auditors: int = 5,
        token: Any = None,
        supply: int = SUPPLY,
        holder_stakes: Sequence[int] = HOLDER_STAKES,
        seats: int = SEATS,
        payout_max: int = PAYOUT_MAX,
    ) -> None:
        self.seats = seats
        self.payout_max = payout_max
        self.settings = settings or Settings()
        self.deployer, self.faucet = make_actor("deployer"), make_actor("faucet")
        self.provider, self.buyer, self.accuser = make_actor("provider"), make_actor("buyer"), make_actor("accuser")
        self.stranger = make_actor("stranger")
        self.auditors = [make_actor(f"auditor{i}") for i in range(auditors)]
        self.holders = [make_actor(f"holder{i}") for i in range(len(holder_stakes))]
        self.validators = [make_actor(f"validator{i}") for i in range(len(VALIDATOR_STAKES))]
        self.chain_id = boa.env.evm.patch.chain_id
        self.counter = 0
        self.credit = token or self._deploy_credit(supply)
        self._deploy()
        self.settlement, self.collector = place("BatchSettlement", SETTLEMENT), place("DepositCollector", COLLECTOR)
        people = (self.provider, self.buyer, self.accuser, self.stranger)
        for actor in (*people, *self.auditors, *self.holders, *self.validators):
            self.credit.transfer(actor.text, 1000 * CREDIT, sender=self.faucet.text)
        self.join(self.provider, COMPUTE, PROVIDER_STAKE)
        for auditor in self.auditors:
            self.join(auditor, AUDIT, AUDITOR_STAKE)
        for holder, stake in zip(self.holders, holder_stakes, strict=True):
            self.join(holder, DA, stake)
        for validator, stake in zip(self.validators, VALIDATOR_STAKES, strict=True):
            self.join(validator, CONSENSUS, stake)
        self.everyone = [self.faucet, *people, *self.auditors, *self.holders, *self.validators]

    def _deploy_credit(self, supply: int) -> Any:
        names = ("DeAIOS Credit", "CREDIT", "1")
        # The deployer stands for a bridge, so that somebody can mint.
        bridge = self.deployer.text
        return deploy("Credit", *names, self.faucet.text, supply, bridge, supply, sender=self.deployer.text)

    def _deploy(self) -> None:
        sender = self.deployer.text
        nonce = boa.env.evm.vm.state.get_nonce(self.deployer.address)
        addresses = (create_address(self.deployer.address, nonce + i) for i in range(3, 9))
        beacon, disputes, forks, availability, networks, equivocation = addresses
        self.receipts = deploy("Receipts", sender=sender)
        self.channels = deploy("Channels", self.credit.address, 60, 3600, sender=sender)
        judges = [(COMPUTE, disputes), (COMPUTE, forks), (AUDIT, disputes), (AUDIT, beacon), (STORAGE, sender)]
        judges += [(DA, availability), (CONSENSUS, equivocation)]
        minimums = [(COMPUTE, PROVIDER_STAKE), (AUDIT, AUDITOR_MIN), (STORAGE, CREDIT), (DA, HOLDER_MIN)]
        minimums.append((CONSENSUS, VALIDATOR_MIN))
        windows = (UNBONDING, JAIL_SECONDS, PAYOUT_SECONDS, self.payout_max)
        self.staking = deploy("SharedStaking", self.credit.address, *windows, judges, minimums, sender=sender)
        self.beacon = deploy(
            "Beacon", self.staking.address, BEACON_COMMIT, BEACON_REVEAL, BEACON_PENALTY, sender=sender
        )
        self.disputes = deploy(
            "Disputes",
            self.credit.address,
            self.staking.address,
            self.beacon.address,
            self.channels.address,
            self.settings.astuple(),
            sender=sender,
        )
        self.forks = deploy(
            "Forks",
            self.credit.address,
            self.staking.address,
            self.receipts.address,
            self.channels.address,
            self.disputes.address,
            CLAIM_SECONDS,
            CLAIM_BOND,
            FORK_PENALTY,
            sender=sender,
        )
        self.availability = deploy("DataAvailability", *self.availability_arguments(), sender=sender)
        windows = (NETWORK_EPOCH_SECONDS, TRUST_SECONDS, EVIDENCE_SECONDS)
        both = (self.credit.address, self.staking.address)
        self.networks = deploy("Networks", *both, equivocation, *windows, NETWORK_BOND, sender=sender)
        self.equivocation = deploy("Equivocation", *both, networks, SLASH_BPS, sender=sender)
        addresses = (self.credit.address, self.channels.address, self.staking.address)
        self.sponsorship = deploy("Sponsorship", *addresses, sender=sender)

    def availability_arguments(self, **changes: Any) -> tuple[Any, ...]:
        """Constructor arguments of DataAvailability, some of them changed."""
        arguments = {
            "token": self.credit.address,
            "staking": self.staking.address,
            "beacon": self.beacon.address,
            "seats": self.seats,
            "epoch": EPOCH_SECONDS,
            "term": TERM_SECONDS_MAX,
            "answer": ANSWER_SECONDS,
            "bond": CHALLENGE_BOND,
            "penalty": ROW_PENALTY,
            "fee_base": FEE_BASE,
            "fee_gib_day": FEE_GIB_DAY,
        }
        assert changes.keys() <= arguments.keys()
        return tuple((arguments | changes).values())

    # Time and money

    def wait(self, seconds: int) -> None:
        boa.env.time_travel(seconds=seconds, block_delta=1)

    @property
    def now(self) -> int:
        return int(boa.env.evm.patch.timestamp)

    def balance(self, who: Actor | Any) -> int:
        return int(self.credit.balanceOf(who.text if isinstance(who, Actor) else who.address))

    def approve(self, who: Actor, spender: Any, amount: int = 2**256 - 1) -> None:
        self.credit.approve(spender.address, amount, sender=who.text)

    def join(self, who: Actor, service: bytes, amount: int, cap_bps: int = 10_000) -> None:
        self.approve(who, self.staking, amount)
        self.staking.stake(amount, sender=who.text)
        self.staking.optIn(service, cap_bps, sender=who.text)

    # Domains and signatures

    tuple_of = staticmethod(struct_tuple)

    def domain(self) -> Domain:
        return structs.protocol_domain(self.chain_id, address_of(self.disputes))

    def channels_domain(self) -> Domain:
        return structs.channels_domain(self.chain_id, address_of(self.channels))

    def token_domain(self) -> Domain:
        return structs.token_domain("DeAIOS Credit", "1", self.chain_id, address_of(self.credit))

    # Channels

    def make_config(self, payer: Actor | None = None, receiver: Actor | None = None, **changes: Any) -> Any:
        payer, receiver = payer or self.buyer, receiver or self.provider
        config = structs.ChannelConfig(
            payer.address, payer.address, receiver.address, receiver.address, address_of(self.credit), 900, ZERO32
        )
        return replace(config, **changes)

    def channel_id(self, config: Any) -> bytes:
        return hash_typed_data(self.channels_domain(), config)

    def collector_data(self, config: Any, amount: int, payer: Actor, salt: int = 0, **changes: int) -> bytes:
        after, before = changes.get("after", 0), changes.get("before", 2**64)
        nonce = keccak256(self.channel_id(config) + salt.to_bytes(32))
        authorization = structs.ReceiveWithAuthorization(
            config.payer, address_of(self.channels), amount, after, before, nonce
        )
        signature = sign_struct(payer.key, self.token_domain(), authorization)
        return encode(["uint256", "uint256", "uint256", "bytes"], [after, before, salt, signature])

    def deposit(self, config: Any, amount: int, payer: Actor | None = None, salt: int = 0) -> bytes:
        data = self.collector_data(config, amount, payer or self.buyer, salt)
        arguments = (struct_tuple(config), amount, self.channels.address, data)
        self.channels.deposit(*arguments, sender=self.stranger.text)
        return self.channel_id(config)

    def make_claim(self, config: Any, total: int, ceiling: int | None = None, signer: Actor | None = None) -> Any:
        ceiling = total if ceiling is None else ceiling
        voucher = structs.Voucher(self.channel_id(config), ceiling)
        signature = sign_struct((signer or self.buyer).key, self.channels_domain(), voucher)
        return ((struct_tuple(config), ceiling), signature, total)

    def sign_pledge(
        self, newcomer: Actor, lender: str, creditor: str, owed: int, terms: bytes, deadline: int, nonce: int = 0
    ) -> bytes:
        lender_address, creditor_address = (Address(bytes.fromhex(text[2:])) for text in (lender, creditor))
        pledge = Pledge(newcomer.address, lender_address, creditor_address, owed, terms, nonce, deadline)
        return sign_struct(newcomer.key, self.channels_domain(), pledge)

    def sponsor_arguments(self, newcomer: Actor, terms: SponsorTerms, nonce: int = 0) -> tuple[Any, ...]:
        """What a sponsor calls `sponsor` with."""
        deadline, creditor = self.now + 100, checksum_address(terms.sponsor)
        lender = str(self.sponsorship.address)
        signature = self.sign_pledge(newcomer, lender, creditor, terms.owed, terms.digest(), deadline, nonce)
        return newcomer.text, terms.seed, terms.backing, terms.owed, terms.term_s, deadline, signature

    # The same by x402's own contract

    def settlement_id(self, config: Any) -> bytes:
        return hash_typed_data(settlement_domain(self.chain_id), config)

    def settlement_data(self, config: Any, amount: int, payer: Actor, salt: int = 0, **changes: Any) -> bytes:
        nonce = keccak256(self.settlement_id(config) + salt.to_bytes(32))
        authorization = structs.ReceiveWithAuthorization(config.payer, COLLECTOR, amount, 0, 2**64, nonce)
        signature = sign_struct(payer.key, self.token_domain(), replace(authorization, **changes))
        return encode(["uint256", "uint256", "uint256", "bytes"], [0, 2**64, salt, signature])

    def settlement_deposit(self, config: Any, amount: int, payer: Actor | None = None, salt: int = 0) -> bytes:
        data = self.settlement_data(config, amount, payer or self.buyer, salt)
        arguments = (struct_tuple(config), amount, self.collector.address, data)
        self.settlement.deposit(*arguments, sender=self.stranger.text)
        return self.settlement_id(config)

    def settlement_claim(self, config: Any, total: int, ceiling: int | None = None, signer: Actor | None = None) -> Any:
        ceiling = total if ceiling is None else ceiling
        voucher = structs.Voucher(self.settlement_id(config), ceiling)
        signature = sign_struct((signer or self.buyer).key, settlement_domain(self.chain_id), voucher)
        return ((struct_tuple(config), ceiling), signature, total)

    # Purchases

    def make_offer(self, provider: Actor | None = None, **changes: Any) -> structs.Offer:
        """One unit for a token read, four for a token sampled."""
        address = (provider or self.provider).address
        offer = structs.Offer(
            address, ZERO32, ZERO32, 2, 10**6, 4 * 10**6, 4096, 8, 900, "http://provider.example/", 10**15
        )
        return replace(offer, **changes)

    def make_receipt(
        self,
        config: Any,
        fee: int = CREDIT // 100,
        provider: Actor | None = None,
        *,
        offer: structs.Offer | None = None,
        max_fee: int = 10 * CREDIT,
        **changes: Any,
    ) -> tuple[Any, bytes, Any, bytes]:
        """A signed request and receipt; the counter goes up by itself."""
        provider = provider or self.provider
        self.counter += 1
        request = structs.Request(
            keccak256(b"ask" + self.counter.to_bytes(8)),
            provider.address,
            ZERO32 if offer is None else hash_struct(offer),
            self.channel_id(config),
            max_fee,
            ZERO32,
            boa.env.evm.patch.block_number + 10,
        )
        receipt = structs.Receipt(
            request_digest=hash_struct(request),
            counter=self.counter,
            prev_receipt=ZERO32,
            output_commitment=keccak256(b"output"),
            prompt_tokens=7,
            cached_tokens=0,
            completion_tokens=9,
            finish_reason=0,
            stop_index=0,
            state=0,
            level=2,
            engine_profile=ZERO32,
            fingerprint_root=ZERO32,
            fee=fee,
            channel_id=self.channel_id(config),
            charged_cumulative=fee,
            batch_deadline_block=99,
            started_at_ms=1,
            first_token_at_ms=2,
            finished_at_ms=3,
        )
        receipt = replace(receipt, **changes)
        request_signature = sign_struct(self.buyer.key, self.domain(), request)
        return request, request_signature, receipt, sign_struct(provider.key, self.domain(), receipt)

    # Disputes

    def commit_evidence(self, accuser: Actor, root: bytes = b"\x07" * 32, salt: bytes = b"\x08" * 32) -> None:
        commitment = keccak256(accuser.address.rjust(32, b"\0") + root + salt)
        self.disputes.commitEvidence(commitment, sender=accuser.text)
        self.wait(1)

    def open_dispute(
        self, purchase: Sequence[Any], accuser: Actor | None = None, salt: bytes = b"\x08" * 32, *, commit: bool = True
    ) -> int:
        accuser = accuser or self.accuser
        if commit:
            self.commit_evidence(accuser, salt=salt)
        self.approve(accuser, self.disputes)
        request, request_signature, receipt, receipt_signature = purchase
        return int(
            self.disputes.open(
                struct_tuple(request),
                request_signature,
                struct_tuple(receipt),
                receipt_signature,
                b"\x07" * 32,
                b"\x09" * 32,
                salt,
                sender=accuser.text,
            )
        )

    def run_beacon(self, round_number: int) -> bytes:
        """All auditors commit and reveal."""
        for auditor in self.auditors:
            self.beacon.commit(round_number, self.beacon_commitment(round_number, auditor), sender=auditor.text)
        for auditor in self.auditors:
            self.beacon.reveal(round_number, secret_of(auditor), sender=auditor.text)
        return bytes(self.beacon.value(round_number))

    def beacon_commitment(self, round_number: int, auditor: Actor) -> bytes:
        return keccak256(round_number.to_bytes(32) + auditor.address.rjust(32, b"\0") + secret_of(auditor))

    def seat_jury(self, dispute_id: int) -> list[Actor]:
        """Run the beacon and draw; the jurors in the order drawn."""
        self.run_beacon(self.dispute(dispute_id).round)
        self.disputes.draw(dispute_id, sender=self.stranger.text)
        return self.jury(dispute_id)

    def jury(self, dispute_id: int) -> list[Actor]:
        by_address = {actor.text: actor for actor in self.auditors}
        return [by_address[str(juror)] for juror in self.disputes.jurorsOf(dispute_id)]

    def verdict(self, dispute_id: int, juror: Actor, judgement: int) -> Any:
        return structs.Verdict(dispute_id, juror.address, judgement, b"\x05" * 32, keccak256(juror.address))

    def vote(self, dispute_id: int, judgements: Sequence[int | None]) -> None:
        """Jurors commit in order, then reveal; None commits and stays silent."""
        jurors = self.jury(dispute_id)
        for juror, judgement in zip(jurors, judgements, strict=True):
            commitment = hash_struct(self.verdict(dispute_id, juror, judgement or ACQUIT))
            self.disputes.commitVerdict(dispute_id, commitment, sender=juror.text)
        for juror, judgement in zip(jurors, judgements, strict=True):
            if judgement is not None:
                self.reveal_verdict(dispute_id, juror, judgement)

    def reveal_verdict(self, dispute_id: int, juror: Actor, judgement: int) -> None:
        verdict = self.verdict(dispute_id, juror, judgement)
        arguments = (dispute_id, judgement, verdict.evidence_root, verdict.salt)
        self.disputes.revealVerdict(*arguments, sender=juror.text)

    def dispute(self, dispute_id: int) -> Any:
        return self.disputes.disputeOf(dispute_id)

    # Committees and their certificates

    def committee(self, epoch: int | None = None) -> Committee:
        """Who holds which seats, by default now."""
        epoch = self.availability.currentEpoch() if epoch is None else epoch
        begun_at, _ = self.availability.epochOf(epoch)
        return decode_committee(epoch, begun_at, self.availability.committeeOf(epoch), self.seats)

    def holder_of(self, seat: int, epoch: int | None = None) -> Actor:
        address = self.committee(epoch).owner_of(seat).address
        return next(holder for holder in self.holders if holder.address == address)

    def make_blob(self, content: bytes = b"a blob", **changes: Any) -> Blob:
        """A blob of the current epoch for 300 seconds from now."""
        matrix = encode_rows(content, build_committee_profile(self.seats))
        values = {
            "commitment": matrix.commitment,
            "epoch": self.availability.currentEpoch(),
            "begins_at": self.now,
            "expires_at": self.now + 300,
        }
        return Blob(matrix, structs.RowAttestation(**(values | changes)))

    def sign_rows(self, blob: Blob, places: Sequence[int] | None = None) -> list[tuple[int, bytes]]:
        """Signatures of the members at these places, by default of all."""
        current = self.availability.currentEpoch()
        epoch = blob.attestation.epoch if 0 < blob.attestation.epoch <= current else current
        members, by_address = self.committee(epoch).members, {holder.address: holder for holder in self.holders}
        domain = structs.availability_domain(self.chain_id, address_of(self.availability))
        return [
            (place, sign_struct(by_address[members[place].address].key, domain, blob.attestation))
            for place in (range(len(members)) if places is None else places)
        ]

    def certify(self, blob: Blob, places: Sequence[int] | None = None, payer: Actor | None = None) -> Blob:
        payer = payer or self.buyer
        self.approve(payer, self.availability)
        self.availability.certify(*blob.tuples, self.sign_rows(blob, places), sender=payer.text)
        return blob

    def challenge_row(self, blob: Blob, seat: int, challenger: Actor | None = None) -> bytes:
        challenger = challenger or self.stranger
        self.approve(challenger, self.availability)
        found = self.availability.challenge(struct_tuple(blob.attestation), seat, sender=challenger.text)
        assert bytes(found) == blob.challenge_id(seat)
        return bytes(found)

    def answer_row(self, blob: Blob, seat: int, sender: Actor | None = None) -> None:
        picks = self.availability.picksOf(blob.challenge_id(seat), blob.head[2])
        sender = sender or self.holder_of(seat, blob.attestation.epoch)
        self.availability.answer(*blob.tuples, seat, *blob.show(seat, picks), sender=sender.text)

    # What must always hold

    def total_held(self) -> int:
        """All money anyone holds; equal to the total supply."""
        contracts = (self.channels, self.staking, self.beacon, self.disputes, self.forks, self.availability)
        return sum(self.balance(holder) for holder in (*self.everyone, *contracts, self.networks, self.equivocation))


def secret_of(auditor: Actor) -> bytes:
    return keccak256(b"secret" + auditor.address)


def address_of(contract: Any) -> Address:
    return Address(bytes.fromhex(str(contract.address)[2:]))
