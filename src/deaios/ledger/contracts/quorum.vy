#pragma version 0.4.3
"""
@title What more than two thirds of a network's power have signed
@notice Contracts keep the hash of a set of validators, and callers show the set. deaios.ledger.valset is the same in Python.
"""
import attestations
import signatures as signing


@internal
@pure
def has_signed(
    validators: DynArray[uint256, attestations.VALIDATORS_MAX],
    signers: uint256,
    signatures: DynArray[Bytes[65], attestations.VALIDATORS_MAX],
    domain_separator: bytes32,
    struct_hash: bytes32,
) -> bool:
    """
    @notice Do signers have more than two thirds of the power? Exactly two thirds are too few.
    @param validators Words of attestations, without a key twice.
    @param signers Bit i is set for the validator at place i; nobody can be counted twice.
    @param signatures One for each bit, in the order of places. A wrong one reverts, whatever the others are.
    """
    digest: bytes32 = signing.typed_data(domain_separator, struct_hash)
    total: uint256 = 0
    signed: uint256 = 0
    used: uint256 = 0
    for i: uint256 in range(len(validators), bound=attestations.VALIDATORS_MAX):
        power: uint256 = validators[i] >> attestations.KEY_BITS
        total += power
        if (signers >> i) & 1 == 1:
            assert used < len(signatures), "quorum: a signature is missing"
            signer: address = signing.recover(digest, signatures[used])
            key: address = convert(validators[i] & (2**attestations.KEY_BITS - 1), address)
            assert signer != empty(address) and signer == key, "quorum: signature is not the validator's"
            signed += power
            used += 1
    assert used == len(signatures) and signers >> len(validators) == 0, "quorum: signer is not in the set"
    return 3 * signed > 2 * total
