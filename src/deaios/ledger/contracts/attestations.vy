#pragma version 0.4.3
"""
@title What keys of networks sign, as deaios.ledger.structs has it
@notice Validator sets, checkpoints and key assignments are signed under one domain for all networks: the root's Networks
    contract, wherever they are read. A header is signed under the domain of its own chain, which names no contract.
"""
import signatures


struct Header:
    genesisHash: bytes32
    height: uint64
    previousHash: bytes32
    transactionsRoot: bytes32
    logsRoot: bytes32
    stateCommitment: bytes32
    timestamp: uint64


struct ValsetUpdate:
    network: bytes32
    epoch: uint64
    begunAt: uint64
    validatorsHash: bytes32


struct Checkpoint:
    source: bytes32
    destination: bytes32
    count: uint64
    root: bytes32


# What a mirror can check in one transaction.
VALIDATORS_MAX: constant(uint256) = 100
# A validator's word: power << 160 | key.
KEY_BITS: constant(uint256) = 160

HEADER_TYPE: constant(bytes32) = keccak256(
    "Header(bytes32 genesisHash,uint64 height,bytes32 previousHash,bytes32 transactionsRoot,bytes32 logsRoot,bytes32 stateCommitment,uint64 timestamp)"
)
VALSET_UPDATE_TYPE: constant(bytes32) = keccak256(
    "ValsetUpdate(bytes32 network,uint64 epoch,uint64 begunAt,bytes32 validatorsHash)"
)
CHECKPOINT_TYPE: constant(bytes32) = keccak256(
    "Checkpoint(bytes32 source,bytes32 destination,uint64 count,bytes32 root)"
)
KEY_ASSIGNMENT_TYPE: constant(bytes32) = keccak256("KeyAssignment(bytes32 network,address operator)")
DOMAIN_TYPE: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
HEADER_DOMAIN_TYPE: constant(bytes32) = keccak256("EIP712Domain(string name,string version,uint256 chainId)")


@internal
@pure
def hash_header(header: Header) -> bytes32:
    """
    @notice The header's digest.
    """
    return keccak256(abi_encode(HEADER_TYPE, header))


@internal
@pure
def hash_valset_update(update: ValsetUpdate) -> bytes32:
    """
    @notice The update's digest.
    """
    return keccak256(abi_encode(VALSET_UPDATE_TYPE, update))


@internal
@pure
def hash_checkpoint(checkpoint: Checkpoint) -> bytes32:
    """
    @notice The checkpoint's digest.
    """
    return keccak256(abi_encode(CHECKPOINT_TYPE, checkpoint))


@internal
@pure
def hash_key_assignment(network: bytes32, operator: address) -> bytes32:
    """
    @notice The digest of what a key signs to show that it is there and meant for this operator.
    """
    return keccak256(abi_encode(KEY_ASSIGNMENT_TYPE, network, operator))


@internal
@pure
def hash_validators(words: DynArray[uint256, VALIDATORS_MAX]) -> bytes32:
    """
    @notice What a validator set is called in an update.
    """
    return keccak256(abi_encode(words))


@internal
@pure
def separator(root_chain_id: uint256, networks: address) -> bytes32:
    """
    @notice The domain of what is said between networks: the Networks contract on the root.
    """
    return keccak256(
        abi_encode(DOMAIN_TYPE, keccak256("DeAIOS Networks"), keccak256("1"), root_chain_id, networks)
    )


@internal
@pure
def header_separator(chain_id: uint256) -> bytes32:
    """
    @notice The domain of the headers of a chain.
    """
    return keccak256(abi_encode(HEADER_DOMAIN_TYPE, keccak256("DeAIOS Header"), keccak256("1"), chain_id))


@internal
@pure
def recover(separator: bytes32, digest: bytes32, signature: Bytes[65]) -> address:
    """
    @notice Who signed a digest; zero when nobody did.
    """
    return signatures.recover(signatures.typed_data(separator, digest), signature)
