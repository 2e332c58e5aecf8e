#pragma version 0.4.3
"""
@title Signature recovery in one canonical form
@notice v is 27 or 28 and s is in the lower half of the curve order, so that a signature cannot be restated (EIP-2).
"""

# Half of the secp256k1 group order.
S_MAX: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168

DOMAIN_TYPE: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)


@internal
@pure
def recover_vrs(digest: bytes32, v: uint256, r: bytes32, s: bytes32) -> address:
    """
    @notice The signer of a digest, or the zero address.
    """
    if v != 27 and v != 28:
        return empty(address)
    if convert(s, uint256) > S_MAX:
        return empty(address)
    return ecrecover(digest, v, r, s)


@internal
@pure
def recover(digest: bytes32, signature: Bytes[65]) -> address:
    """
    @notice The signer of a digest from r || s || v, or the zero address.
    """
    if len(signature) != 65:
        return empty(address)
    return self.recover_vrs(
        digest,
        convert(slice(signature, 64, 1), uint256),
        convert(slice(signature, 0, 32), bytes32),
        convert(slice(signature, 32, 32), bytes32),
    )


@internal
@view
def separator(name_hash: bytes32, version_hash: bytes32, contract: address) -> bytes32:
    """
    @notice The EIP-712 domain separator on this chain.
    """
    return keccak256(abi_encode(DOMAIN_TYPE, name_hash, version_hash, chain.id, contract))


@internal
@pure
def typed_data(domain_separator: bytes32, struct_hash: bytes32) -> bytes32:
    """
    @notice The 32 bytes that are signed.
    """
    return keccak256(concat(b"\x19\x01", domain_separator, struct_hash))
