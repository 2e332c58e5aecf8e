"""Every contract of a network behind one object."""

from deaios.ledger.client.availability import DataAvailability
from deaios.ledger.client.beacon import Beacon
from deaios.ledger.client.bridge import Bridge
from deaios.ledger.client.catalogue import Catalogue
from deaios.ledger.client.channels import Channels
from deaios.ledger.client.credit import Credit
from deaios.ledger.client.disputes import Disputes
from deaios.ledger.client.forks import Forks
from deaios.ledger.client.identities import IdentityRegistry
from deaios.ledger.client.messages import Inbox, Outbox
from deaios.ledger.client.networks import Equivocation, Networks
from deaios.ledger.client.receipts import Receipts
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sponsorship import Sponsorship
from deaios.ledger.client.staking import SharedStaking
from deaios.ledger.suite import SuiteAddresses


class Contracts:
    """The suite on one chain; reads are `await c.credit.balance_of(a)`, writes take a `Sender` first.

    Reads are of the latest block; those of `settled` are of the newest block that no reorganisation takes back.
    """

    def __init__(self, rpc: Rpc, addresses: SuiteAddresses) -> None:
        self.rpc = rpc
        self.addresses = addresses
        self._settled: Contracts | None = None
        self.credit = Credit(rpc, addresses.credit)
        self.identities = IdentityRegistry(rpc, addresses.identities)
        self.catalogue = Catalogue(rpc, addresses.catalogue)
        self.receipts = Receipts(rpc, addresses.receipts)
        self.channels = Channels(rpc, addresses.channels)
        self.staking = SharedStaking(rpc, addresses.staking)
        self.beacon = Beacon(rpc, addresses.beacon)
        self.disputes = Disputes(rpc, addresses.disputes)
        self.forks = Forks(rpc, addresses.forks)
        self.availability = DataAvailability(rpc, addresses.availability)
        self.networks = Networks(rpc, addresses.networks)
        self.equivocation = Equivocation(rpc, addresses.equivocation)
        self.outbox = Outbox(rpc, addresses.outbox)
        self.inbox = Inbox(rpc, addresses.inbox)
        self.bridge = Bridge(rpc, addresses.bridge)
        self.sponsorship = Sponsorship(rpc, addresses.sponsorship, self.channels)

    @property
    def settled(self) -> "Contracts":
        """The suite as of the newest settled block; this very object where the chain never takes a block back."""
        if self.rpc.settled is self.rpc:
            return self
        if self._settled is None:
            self._settled = Contracts(self.rpc.settled, self.addresses)
        return self._settled
