"""x402's contract and token in memory, and a payer that can be told to lie; loaded by its path.

The real contracts are met in test_x402_clients.py and tests/contracts; here they are quick, and fail on demand.
"""

import base64
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from deaios.gateway.x402 import Payments
from deaios.gateway.x402_store import PaymentStore
from deaios.gateway.x402_terms import TillTerms
from deaios.ledger.client.settlement import SettlementChannel
from deaios.ledger.commitments import build_deposit_authorization
from deaios.ledger.eip712 import hash_typed_data, recover_signer, sign_struct
from deaios.ledger.structs import ChannelConfig, Voucher
from deaios.ledger.x402 import COLLECTOR, TransferWithAuthorization, WindowRequest, settlement_domain
from deaios.market.x402 import encode_config
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Refused, Unavailable
from deaios.primitives.hashing import sha256
from deaios.primitives.keys import Address, PrivateKey, checksum_address
from deaios.runtime.clock import SystemClock

FAR = 1 << 40


class RefusedByContract(Refused):
    """The contract's revert."""


class UnavailableNode(Unavailable):
    """The node is down."""


def build_key(name: str) -> PrivateKey:
    return PrivateKey(sha256(b"x402 " + name.encode()))


GATEWAY = build_key("gateway")
TERMS = TillTerms(31337, GATEWAY.address, build_key("token").address, "Test Credit", "1", deposit_min=1000)


@dataclass
class FakeSettlement:
    """What `PaymentChain` asks, with the contracts' rules."""

    terms: TillTerms = TERMS
    channels: dict[bytes, SettlementChannel] = field(default_factory=dict)
    used: dict[tuple[Address, bytes], TransferWithAuthorization | None] = field(default_factory=dict)
    balances: dict[Address, int] = field(default_factory=dict)
    batches: list[int] = field(default_factory=list)
    swept: int = 0
    is_down: bool = False
    loses_answers: bool = False
    deposits: int = 0

    def answer(self) -> bytes:
        if self.loses_answers:
            raise UnavailableNode("the answer was lost")
        return sha256(b"transaction")

    def check(self) -> None:
        if self.is_down:
            raise UnavailableNode("node is down")

    async def fetch_channels(self, channel_ids):
        self.check()
        return [self.channels.get(channel_id, SettlementChannel()) for channel_id in channel_ids]

    def id_of(self, config: ChannelConfig) -> bytes:
        return hash_typed_data(self.terms.domain, config)

    async def deposit(self, config, deposit):
        self.check()
        channel_id = self.id_of(config)
        nonce = sha256(channel_id + deposit.salt.to_bytes(32))
        if (config.payer, nonce) in self.used or self.balances.get(config.payer, 0) < deposit.amount:
            raise RefusedByContract("authorization is used, or money is missing")
        self.used[config.payer, nonce] = None
        self.balances[config.payer] -= deposit.amount
        state = self.channels.get(channel_id, SettlementChannel())
        self.channels[channel_id] = replace(state, balance=state.balance + deposit.amount)
        self.deposits += 1
        return self.answer()

    def claim_one(self, claim):
        channel_id = self.id_of(claim.config)
        state = self.channels[channel_id]
        voucher = Voucher(channel_id, claim.max_claimable_amount)
        signed = recover_signer(self.terms.domain, voucher, claim.signature) == claim.config.payer_authorizer
        if not signed or claim.total_claimed > min(claim.max_claimable_amount, state.balance):
            raise RefusedByContract("claim exceeds voucher or balance")
        total = max(state.total_claimed, claim.total_claimed)
        self.channels[channel_id] = replace(state, total_claimed=total)

    async def claim(self, claims):
        self.check()
        for claim in claims:
            self.claim_one(claim)
        self.batches.append(len(claims))
        return self.answer()

    async def sweep(self):
        self.check()
        claimed = sum(state.total_claimed for state in self.channels.values())
        amount, self.swept = claimed - self.swept, claimed
        return amount

    async def refund(self, claims, config, amount):
        self.check()
        for claim in claims:
            self.claim_one(claim)
        channel_id = self.id_of(config)
        state = self.channels[channel_id]
        amount = min(amount, state.balance - state.total_claimed)
        self.channels[channel_id] = replace(state, balance=state.balance - amount, refund_nonce=state.refund_nonce + 1)
        self.balances[config.payer] += amount
        return self.answer()

    def begin_withdrawal(self, channel_id):
        state = self.channels[channel_id]
        left = state.balance - state.total_claimed
        self.channels[channel_id] = replace(state, withdrawing=left, withdraw_started_at=1_800_000_000)

    def end_withdrawal(self, channel_id) -> int:
        state = self.channels[channel_id]
        left = min(state.withdrawing, state.balance - state.total_claimed)
        self.channels[channel_id] = replace(state, balance=state.balance - left, withdrawing=0, withdraw_started_at=0)
        return left

    async def pay(self, authorization, signature):
        self.check()
        name = (authorization.from_, authorization.nonce)
        if name in self.used or self.balances.get(authorization.from_, 0) < authorization.value:
            raise RefusedByContract("authorization is used, or money is missing")
        assert recover_signer(self.terms.money, authorization, signature) == authorization.from_
        self.used[name] = authorization
        self.balances[authorization.from_] -= authorization.value
        self.balances[authorization.to] = self.balances.get(authorization.to, 0) + authorization.value
        return self.answer()

    async def pay_back(self, authorization):
        return await self.pay(authorization, sign_struct(GATEWAY, self.terms.money, authorization))

    async def is_used(self, payer, nonce):
        self.check()
        return (payer, nonce) in self.used

    async def was_taken(self, authorization):
        self.check()
        return self.used.get((authorization.from_, authorization.nonce)) == authorization


def open_payments(folder: Path, chain: FakeSettlement, **changes: object) -> Payments:
    settings = {"watch_s": 3600.0, "claim_s": 3600.0} | changes
    return Payments(chain.terms, PaymentStore.open(folder / "x402.db"), chain, **settings)


@dataclass
class Payer:
    """Writes whatever payment it is told to."""

    name: str
    chain: FakeSettlement
    terms: TillTerms = TERMS
    salt: int = 0

    def __post_init__(self) -> None:
        self.key = build_key(self.name)
        self.chain.balances[self.key.address] = 10**9

    @property
    def config(self) -> ChannelConfig:
        me, gateway = self.key.address, self.terms.receiver
        return ChannelConfig(me, me, gateway, gateway, self.terms.token, self.terms.withdraw_delay, bytes(32))

    @property
    def channel_id(self) -> bytes:
        return hash_typed_data(self.terms.domain, self.config)

    @property
    def state(self) -> SettlementChannel:
        return self.chain.channels[self.channel_id]

    def accept(self, scheme: str, amount: int, **changes: object) -> dict[str, object]:
        return {
            "scheme": scheme,
            "network": self.terms.network,
            "amount": str(amount),
            "asset": checksum_address(self.terms.token),
            "payTo": checksum_address(self.terms.receiver),
            "maxTimeoutSeconds": 600,
            "extra": {},
        } | changes

    def voucher(self, maximum: int, key: PrivateKey | None = None) -> dict[str, str]:
        signature = sign_struct(key or self.key, self.terms.domain, Voucher(self.channel_id, maximum))
        return {
            "channelId": encode_hex(self.channel_id),
            "maxClaimableAmount": str(maximum),
            "signature": encode_hex(signature),
        }

    def pay(self, maximum: int, quote: int, **parts: object) -> dict[str, str]:
        """Headers of a payment by channel; `parts` change the payload."""
        payload = {"type": "voucher", "channelConfig": encode_config(self.config), "voucher": self.voucher(maximum)}
        return encode({"accepted": self.accept("batch-settlement", quote), "payload": payload | parts})

    def deposit(self, maximum: int, quote: int, amount: int, **parts: object) -> dict[str, str]:
        self.salt += 1
        authorization = build_deposit_authorization(
            self.config, self.channel_id, COLLECTOR, amount, valid_after=0, valid_before=FAR, salt=self.salt
        )
        terms = {
            "validAfter": "0",
            "validBefore": str(FAR),
            "salt": encode_hex(self.salt.to_bytes(32)),
            "signature": encode_hex(sign_struct(self.key, self.terms.money, authorization)),
        }
        deposit = {"amount": str(amount), "authorization": {"erc3009Authorization": terms}}
        return self.pay(maximum, quote, type="deposit", deposit=deposit, **parts)

    def window(self, sequence: int, body: bytes) -> dict[str, str]:
        request = WindowRequest(self.channel_id, sequence, sha256(body))
        signature = sign_struct(self.key, settlement_domain(self.terms.chain_id), request)
        return {"sequence": str(sequence), "signature": encode_hex(signature)}

    def refund(self, maximum: int, **parts: object) -> dict[str, str]:
        return self.pay(maximum, 1, type="refund", **parts)

    def transfer(self, amount: int, *, nonce: int = 1, key: PrivateKey | None = None, **changes: object):
        """Headers of an exact payment, and what it authorises."""
        authorization = TransferWithAuthorization(
            self.key.address, self.terms.receiver, amount, 0, SystemClock().now_ms() // 1000 + 600, bytes([nonce]) * 32
        )
        authorization = replace(authorization, **changes)
        signature = sign_struct(key or self.key, self.terms.money, authorization)
        payload = {
            "authorization": {
                "from": checksum_address(authorization.from_),
                "to": checksum_address(authorization.to),
                "value": str(authorization.value),
                "validAfter": str(authorization.valid_after),
                "validBefore": str(authorization.valid_before),
                "nonce": encode_hex(authorization.nonce),
            },
            "signature": encode_hex(signature),
        }
        return encode({"accepted": self.accept("exact", amount), "payload": payload}), authorization


def encode(payment: dict[str, object]) -> dict[str, str]:
    text = json.dumps({"x402Version": 2} | payment)
    return {"PAYMENT-SIGNATURE": base64.b64encode(text.encode()).decode()}


def decode(text: str) -> dict:
    return json.loads(base64.b64decode(text))
