"""What buyer and seller must agree on before any purchase: which network, which contracts, which money.

Pure. A signature made under one network's terms means nothing under another's: chain id and contract addresses are in
every domain, the genesis hash in every signed request that is not EIP-712.
"""

from dataclasses import dataclass

from deaios.ledger.eip712 import Domain, hash_typed_data
from deaios.ledger.structs import ChannelConfig, channels_domain, protocol_domain, token_domain
from deaios.primitives.keys import Address


@dataclass(frozen=True, slots=True)
class Terms:
    """One network as the market sees it.

    Attributes:
        chain_id: of the network that settles.
        network_id: its genesis hash, 32 bytes.
        disputes: the contract that judges receipts; names the protocol's signing domain.
        channels: the payment-channel contract.
        token: the EIP-3009 money.
        token_name: the money's EIP-712 name.
        token_version: the money's EIP-712 version.
    """

    chain_id: int
    network_id: bytes
    disputes: Address
    channels: Address
    token: Address
    token_name: str
    token_version: str

    @property
    def protocol(self) -> Domain:
        """Domain of ask, request, receipt, batch, offer and cancel."""
        return protocol_domain(self.chain_id, self.disputes)

    @property
    def vouchers(self) -> Domain:
        """Domain of vouchers and channel ids."""
        return channels_domain(self.chain_id, self.channels)

    @property
    def money(self) -> Domain:
        """Domain of transfer authorizations."""
        return token_domain(self.token_name, self.token_version, self.chain_id, self.token)

    def channel_id(self, config: ChannelConfig) -> bytes:
        """The channel's id: its configuration's typed-data digest, as x402 computes it."""
        return hash_typed_data(self.vouchers, config)
