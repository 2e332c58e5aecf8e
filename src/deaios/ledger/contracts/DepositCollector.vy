#pragma version 0.4.3
"""
@title DepositCollector: brings deposits into BatchSettlement by EIP-3009
@notice x402's `ERC3009DepositCollector`, at the address that stock x402 clients sign for: the payer's authorization names
    this contract as receiver and its channel in the nonce, and only BatchSettlement may use it. Holds nothing between
    calls. Unlike there, the token is called with the signature's three parts, as EIP-3009 has it, so that a deposit is
    signed by a key.
    Source: x402-foundation/x402, contracts/evm/src/periphery/ERC3009DepositCollector.sol.
"""


interface Token:
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def receiveWithAuthorization(
        owner: address,
        to: address,
        amount: uint256,
        validAfter: uint256,
        validBefore: uint256,
        nonce: bytes32,
        v: uint8,
        r: bytes32,
        s: bytes32,
    ): nonpayable


COLLECTOR_DATA_MAX: constant(uint256) = 1024

x402BatchSettlement: public(constant(address)) = 0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003


@external
def collect(
    payer: address, token: address, amount: uint256, channelId: bytes32, collectorData: Bytes[COLLECTOR_DATA_MAX]
):
    """
    @notice Take what the payer authorized for this channel and pass it on.
    @param collectorData abi.encode(validAfter, validBefore, salt, signature).
    """
    assert msg.sender == x402BatchSettlement, "collector: caller is not the settlement"
    valid_after: uint256 = 0
    valid_before: uint256 = 0
    salt: uint256 = 0
    signature: Bytes[65] = b""
    valid_after, valid_before, salt, signature = abi_decode(collectorData, (uint256, uint256, uint256, Bytes[65]))
    assert len(signature) == 65, "collector: signature is not 65 bytes"
    extcall Token(token).receiveWithAuthorization(
        payer,
        self,
        amount,
        valid_after,
        valid_before,
        keccak256(abi_encode(channelId, salt)),
        convert(slice(signature, 64, 1), uint8),
        convert(slice(signature, 0, 32), bytes32),
        convert(slice(signature, 32, 32), bytes32),
    )
    paid: bool = extcall Token(token).transfer(x402BatchSettlement, amount, default_return_value=True)
    assert paid, "collector: transfer failed"
