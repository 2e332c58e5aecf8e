#pragma version 0.4.3
#pragma nonreentrancy on
"""
@title ValsetMirror: a network's validators on the network itself, which cannot see the root
@notice The root keeps the set of every epoch; its hash is mirrored here. The validators of the newest epoch known here say by
    more than two thirds of their power what a later one is. Epochs only rise; some may be left out, so that a network
    that stood still needs one update and not all. Once an epoch is older than the trust period nothing its validators
    say counts any more: they may have taken their stake. Anyone may bring an update; nobody owns this contract, and it
    holds no money.
"""
import attestations
import quorum

event Updated:
    epoch: indexed(uint64)
    begunAt: uint64
    validatorsHash: bytes32


network: public(bytes32)
# Of the registry on the root, under whose domain validators sign.
rootChainId: public(uint256)
registry: public(address)
trustSeconds: public(uint256)

_epoch: attestations.ValsetUpdate


@deploy
def __init__(
    network: bytes32,
    rootChainId: uint256,
    registry: address,
    trustSeconds: uint256,
    epoch: uint64,
    begunAt: uint64,
    validatorsHash: bytes32,
):
    """
    @param epoch The first one here, with its time and set; what the root says.
    """
    assert registry != empty(address) and trustSeconds > 0, "mirror: registry or trust period is zero"
    self.network = network
    self.rootChainId = rootChainId
    self.registry = registry
    self.trustSeconds = trustSeconds
    self._take(
        attestations.ValsetUpdate(network=network, epoch=epoch, begunAt=begunAt, validatorsHash=validatorsHash)
    )


@external
def update(
    update: attestations.ValsetUpdate,
    validators: DynArray[uint256, attestations.VALIDATORS_MAX],
    signers: uint256,
    signatures: DynArray[Bytes[65], attestations.VALIDATORS_MAX],
):
    """
    @notice Take over a later epoch that more than two thirds of the power of the newest one here signed.
    @param validators Of the newest one here, in the root's order.
    """
    assert update.network == self.network, "mirror: update is of another network"
    assert self._is_trusted(), "mirror: trust period is over"
    assert attestations.hash_validators(validators) == self._epoch.validatorsHash, "mirror: not the current set"
    assert quorum.has_signed(
        validators,
        signers,
        signatures,
        attestations.separator(self.rootChainId, self.registry),
        attestations.hash_valset_update(update),
    ), "mirror: too little power signed"
    self._take(update)


@external
@view
def epochOf(network: bytes32) -> (uint256, uint256, bytes32):
    """
    @notice Newest epoch of this network, when it began, and the hash of its set; zeros for another network.
    """
    if network != self.network:
        return 0, 0, empty(bytes32)
    return (
        convert(self._epoch.epoch, uint256),
        convert(self._epoch.begunAt, uint256),
        self._epoch.validatorsHash,
    )


@external
@view
def isTrusted() -> bool:
    """
    @notice Is the trust period of the newest epoch not over?
    """
    return self._is_trusted()


@internal
@view
def _is_trusted() -> bool:
    return block.timestamp <= convert(self._epoch.begunAt, uint256) + self.trustSeconds


@internal
def _take(update: attestations.ValsetUpdate):
    assert update.epoch > self._epoch.epoch, "mirror: epoch is not later"
    assert update.begunAt >= self._epoch.begunAt, "mirror: epoch began before"
    assert update.validatorsHash != empty(bytes32), "mirror: set is zero"
    self._epoch = update
    log Updated(epoch=update.epoch, begunAt=update.begunAt, validatorsHash=update.validatorsHash)
