"""The suite as the table of calls finds it: who acts, what they hold, and how far a case can be brought in one step."""

from typing import Any

from contracts_lies import Chains
from contracts_world import (
    ZERO32,
    Blob,
    World,
    deploy,
    make_actor,
    offer_tuple,
)
from eth_abi import encode

from deaios.ledger import structs
from deaios.ledger.eip712 import sign_struct
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address
from deaios.primitives.merkle import build_root, prove_leaf
from deaios.primitives.units import CREDIT

CONTRACT_NAMES = {
    "credit": "Credit",
    "identities": "IdentityRegistry",
    "catalogue": "Catalogue",
    "receipts": "Receipts",
    "channels": "Channels",
    "staking": "SharedStaking",
    "beacon": "Beacon",
    "disputes": "Disputes",
    "forks": "Forks",
    "availability": "DataAvailability",
    "networks": "Networks",
    "equivocation": "Equivocation",
    "outbox": "Outbox",
    "inbox": "Inbox",
    "bridge": "Bridge",
    "mirror": "ValsetMirror",
    "sponsorship": "Sponsorship",
    "settlement": "BatchSettlement",
    "collector": "DepositCollector",
}

PEOPLE = (
    "deployer",
    "faucet",
    "provider",
    "buyer",
    "signer",
    "cashier",
    "accuser",
    "juror",
    "spectator",
    "holder",
    "validator",
    "backer",
    "stranger",
)
CONTRACTS = (
    "beacon",
    "channels",
    "disputes",
    "forks",
    "availability",
    "networks",
    "equivocation",
    "inbox",
    "settlement",
)
EVERYONE = frozenset(PEOPLE + CONTRACTS)
AMOUNT = 5
PAYLOAD = bytes(range(1, 256)) * 1176
"""Without zero bytes, which are cheaper to send; 74 leaves a row in twelve seats."""


class Scene:
    """The suite, a channel with authorizers of its own on both sides, and a name for everyone who calls."""

    def __init__(self, world: World) -> None:
        self.world = world
        identities, catalogue = (deploy(name, sender=world.stranger.text) for name in ("IdentityRegistry", "Catalogue"))
        self.abroad = world.abroad
        root, self.island = self.abroad.root, self.abroad.further[0]
        names = ("credit", "receipts", "staking", *(name for name in CONTRACTS if name != "inbox"))
        self.contracts = {name: getattr(world, name) for name in names} | {
            "identities": identities,
            "catalogue": catalogue,
            "outbox": root.outbox,
            "inbox": root.inbox,
            "bridge": root.bridge,
            "mirror": self.island.mirror,
            "sponsorship": world.sponsorship,
            "collector": world.collector,
        }
        for name in ("deployer", "faucet", "provider", "buyer", "accuser", "stranger"):
            setattr(self, name, getattr(world, name))
        self.signer, self.cashier, self.backer = (make_actor(name) for name in ("signer", "cashier", "backer"))
        self.juror, self.spectator = world.auditors[:2]
        self.holder, self.validator = world.holders[0], world.validators[0]
        self.chains = Chains(world)
        self.config = world.make_config(
            payer_authorizer=self.signer.address, receiver_authorizer=self.cashier.address, salt=b"\x0a" * 32
        )
        self.terms = world.tuple_of(self.config)
        self.channel_id = world.channel_id(self.config)
        for role in sorted(EVERYONE):
            world.credit.transfer(self.address(role), 10 * CREDIT, sender=world.faucet.text)
            for spender in (world.staking, world.disputes, world.forks, world.availability, world.networks):
                world.credit.approve(spender.address, 2**256 - 1, sender=self.address(role))

    def address(self, role: str) -> str:
        return str(self.contracts[role].address) if role in CONTRACTS else str(getattr(self, role).text)

    def wealth(self) -> dict[str, int]:
        """Money and stake of everyone."""
        staking, found = self.world.staking, {}
        for role in sorted(EVERYONE - {"faucet"}):
            text = self.address(role)
            stakes = [staking.accountOf(operator, text)[:2] for operator in {text, self.validator.text}]
            found[role] = self.world.credit.balanceOf(text) + sum(map(sum, stakes))
        return found

    # What must be there before a call

    def deposit(self) -> None:
        self.world.deposit(self.config, CREDIT)

    def claim_row(self) -> Any:
        return self.world.make_claim(self.config, AMOUNT, signer=self.signer)

    def claimed(self) -> None:
        self.deposit()
        self.world.channels.claim([self.claim_row()], sender=self.cashier.text)

    def withdrawing(self) -> None:
        self.deposit()
        self.world.channels.initiateWithdraw(self.terms, AMOUNT, sender=self.buyer.text)
        self.world.wait(900)

    def purchase(self) -> tuple[Any, bytes, Any, bytes]:
        self.deposit()
        return self.world.make_receipt(self.config)

    def opened(self) -> int:
        return self.world.open_dispute(self.purchase())

    def seated(self) -> int:
        dispute_id = self.opened()
        jurors = self.world.seat_jury(dispute_id)
        self.juror = jurors[0]
        self.spectator = next(auditor for auditor in self.world.auditors if auditor not in jurors)
        return dispute_id

    def judged(self, judgement: int) -> int:
        dispute_id = self.seated()
        self.world.vote(dispute_id, [judgement] * 3)
        self.world.disputes.tally(dispute_id, sender=self.stranger.text)
        return dispute_id

    def requested(self) -> int:
        return int(self.world.beacon.request(sender=self.stranger.text))

    def committed(self) -> int:
        number = self.requested()
        commitment = self.world.beacon_commitment(number, self.juror)
        self.world.beacon.commit(number, commitment, sender=self.juror.text)
        self.world.wait(20)
        return number

    def challenged(self) -> None:
        self.claimed()
        self.world.forks.challengeClaim(self.terms, sender=self.accuser.text)

    def blob(self, content: bytes = PAYLOAD) -> Blob:
        """A blob of the first epoch."""
        if self.world.availability.currentEpoch() == 0:
            self.world.availability.beginEpoch(sender=self.stranger.text)
        return self.world.make_blob(content)

    def certificate(self, content: bytes = PAYLOAD) -> Blob:
        return self.world.certify(self.blob(content))

    def doubted(self, *, answerable: bool = True) -> tuple[Blob, int]:
        """A certificate, and a seat of the holder that the accuser challenged; with the beacon's value, or not."""
        blob = self.certificate()
        seat = next(m for m in self.world.committee().members if m.address == self.holder.address).first_seat
        challenge_id = self.world.challenge_row(blob, seat, self.accuser)
        if answerable:
            self.world.run_beacon(self.world.availability.challengeOf(challenge_id)[2])
        return blob, seat

    def certificates(self, count: int) -> tuple[Any, ...]:
        """Expired ones."""
        blobs = [self.certificate(bytes([number]) * 100) for number in range(count)]
        self.world.wait(300)
        return ([blob.tuples for blob in blobs],)

    def sign(self, struct: Any) -> bytes:
        return sign_struct(self.provider.key, self.world.domain(), struct)

    def two_receipts(self, *same: str) -> tuple[Any, ...]:
        """Two receipts of the provider that agree in the named fields."""
        first, second = self.world.make_receipt(self.config)[2], self.world.make_receipt(self.config)[2]
        second = structs.Receipt(**(second.__dict__ | {name: getattr(first, name) for name in same}))
        return (self.world.tuple_of(first), self.sign(first), self.world.tuple_of(second), self.sign(second))

    def wrong_fee(self) -> tuple[Any, ...]:
        """A receipt that charges one unit more than its offer says."""
        offer = self.world.make_offer()
        request, _, receipt, signature = self.world.make_receipt(self.config, fee=7 + 9 * 4 + 1, offer=offer)
        return (self.world.tuple_of(receipt), signature, self.world.tuple_of(request), offer_tuple(offer))

    def other_leaf(self) -> tuple[Any, ...]:
        signed = self.world.make_receipt(self.config)[2]
        leaves = [keccak256(b"another leaf")]
        root = build_root("deaios/receipts/1", leaves)
        self.world.receipts.publish(1, 1, ZERO32, root, ZERO32, sender=self.provider.text)
        return (self.world.tuple_of(signed), self.sign(signed), 0, leaves[0], list(prove_leaf(leaves, 0)))

    def agent(self) -> int:
        """An agent of the provider; the accuser acts for all its agents, the buyer for this one."""
        identities, owner = self.contracts["identities"], self.provider.text
        agent_id = int(identities.register("http://a", sender=owner))
        identities.setApprovalForAll(self.accuser.text, True, sender=owner)
        identities.approve(self.buyer.text, agent_id, sender=owner)
        return agent_id

    def wallet_consent(self) -> tuple[Any, ...]:
        agent_id, deadline = self.agent(), self.world.now + 60
        registry = self.contracts["identities"]
        values = (agent_id, self.signer.text, self.provider.text, deadline)
        type_string = b"AgentWalletSet(uint256 agentId,address newWallet,address owner,uint256 deadline)"
        struct_hash = keccak256(
            encode(["bytes32", "uint256", "address", "address", "uint256"], [keccak256(type_string), *values])
        )
        domain = structs.token_domain(
            "ERC8004IdentityRegistry", "1", self.world.chain_id, Address(bytes.fromhex(str(registry.address)[2:]))
        )
        digest = keccak256(b"\x19\x01" + domain.separator() + struct_hash)
        return (agent_id, self.signer.text, deadline, self.signer.key.sign_digest(digest))

    def token_signature(self, type_string: str, *values: Any) -> tuple[int, bytes, bytes]:
        """The buyer's signature over a struct of Credit; types come from the type string itself."""
        types = [part.split(" ")[0] for part in type_string[type_string.index("(") + 1 : -1].split(",")]
        struct_hash = keccak256(encode(["bytes32", *types], [keccak256(type_string.encode()), *values]))
        digest = keccak256(b"\x19\x01" + self.world.token_domain().separator() + struct_hash)
        signature = self.buyer.key.sign_digest(digest)
        return signature[64], signature[:32], signature[32:64]

    def transfer_authorization(self, kind: str) -> tuple[Any, ...]:
        fields = "(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
        values = (self.buyer.text, self.spectator.text, AMOUNT, 0, 2**64, b"\x0b" * 32)
        return (*values, *self.token_signature(kind + fields, *values))

    def cancellation(self) -> tuple[Any, ...]:
        values = (self.buyer.text, b"\x0b" * 32)
        return (*values, *self.token_signature("CancelAuthorization(address authorizer,bytes32 nonce)", *values))

    def allowance(self) -> tuple[Any, ...]:
        type_string = "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
        owner, spender, deadline = self.buyer.text, self.spectator.text, 2**64
        return (
            owner,
            spender,
            AMOUNT,
            deadline,
            *self.token_signature(type_string, owner, spender, AMOUNT, 0, deadline),
        )

    def refund_signature(self) -> tuple[Any, ...]:
        self.deposit()
        refund = structs.Refund(self.channel_id, 0, AMOUNT)
        return (self.terms, AMOUNT, 0, sign_struct(self.cashier.key, self.world.channels_domain(), refund))

    def batch_signature(self) -> tuple[Any, ...]:
        self.deposit()
        rows = [self.claim_row()]
        return (rows, self.cashier.key.sign_digest(bytes(self.world.channels.getClaimBatchDigest(rows))))
