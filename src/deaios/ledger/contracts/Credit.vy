#pragma version 0.4.3
"""
@title Credit: the token a network counts in
@notice ERC-20 with EIP-3009, EIP-2612 and EIP-5267. Nobody can pause, freeze or take. Only a bridge that is fixed at
    deployment can mint, never above the greatest supply; without a bridge nobody can.
"""
from ethereum.ercs import IERC20
import signatures

implements: IERC20

# The field names that EIP-20 gives, `from` and `value`, are reserved words here; topics and selectors are the same.
event AuthorizationUsed:
    authorizer: indexed(address)
    nonce: indexed(bytes32)


event AuthorizationCanceled:
    authorizer: indexed(address)
    nonce: indexed(bytes32)


# https://eips.ethereum.org/EIPS/eip-3009
TRANSFER_TYPE: constant(bytes32) = keccak256(
    "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
RECEIVE_TYPE: constant(bytes32) = keccak256(
    "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
CANCEL_TYPE: constant(bytes32) = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)")
# https://eips.ethereum.org/EIPS/eip-2612
PERMIT_TYPE: constant(bytes32) = keccak256(
    "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
)

name: public(String[32])
symbol: public(String[8])
version: public(String[8])
decimals: public(constant(uint8)) = 6

# Who may mint; zero for nobody.
bridge: public(address)
supplyMax: public(uint256)

totalSupply: public(uint256)
balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
nonces: public(HashMap[address, uint256])
authorizationState: public(HashMap[address, HashMap[bytes32, bool]])


@deploy
def __init__(
    name: String[32],
    symbol: String[8],
    version: String[8],
    holder: address,
    supply: uint256,
    bridge: address,
    supplyMax: uint256,
):
    assert holder != empty(address), "credit: holder is zero"
    assert supply <= supplyMax, "credit: supply exceeds its greatest"
    self.name = name
    self.symbol = symbol
    self.version = version
    self.bridge = bridge
    self.supplyMax = supplyMax
    self.totalSupply = supply
    self.balanceOf[holder] = supply
    log IERC20.Transfer(sender=empty(address), receiver=holder, value=supply)


@external
def transfer(to: address, amount: uint256) -> bool:
    """
    @notice Move the caller's money.
    """
    self._move(msg.sender, to, amount)
    return True


@external
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    """
    @notice Move money that its owner allowed the caller to move; an allowance of 2^256 - 1 is not used up.
    """
    allowed: uint256 = self.allowance[owner][msg.sender]
    if allowed != max_value(uint256):
        assert allowed >= amount, "credit: allowance is too small"
        self.allowance[owner][msg.sender] = allowed - amount
    self._move(owner, to, amount)
    return True


@external
def approve(spender: address, amount: uint256) -> bool:
    """
    @notice Allow a spender; replaces what was allowed before.
    """
    self._approve(msg.sender, spender, amount)
    return True


@external
def burn(amount: uint256):
    """
    @notice Destroy the caller's own money.
    """
    held: uint256 = self.balanceOf[msg.sender]
    assert held >= amount, "credit: balance is too small"
    self.balanceOf[msg.sender] = held - amount
    self.totalSupply -= amount
    log IERC20.Transfer(sender=msg.sender, receiver=empty(address), value=amount)


@external
def mint(to: address, amount: uint256):
    """
    @notice Make money that was burned on another network; for the bridge.
    """
    assert msg.sender == self.bridge, "credit: caller is not the bridge"
    assert to != empty(address), "credit: receiver is zero"
    assert amount <= self.supplyMax - self.totalSupply, "credit: supply exceeds its greatest"
    self.totalSupply += amount
    self.balanceOf[to] += amount
    log IERC20.Transfer(sender=empty(address), receiver=to, value=amount)


@external
def transferWithAuthorization(
    owner: address,
    to: address,
    amount: uint256,
    validAfter: uint256,
    validBefore: uint256,
    nonce: bytes32,
    v: uint8,
    r: bytes32,
    s: bytes32,
):
    """
    @notice Execute a transfer that its owner signed (EIP-3009); anyone may submit it.
    """
    self._use(TRANSFER_TYPE, owner, to, amount, validAfter, validBefore, nonce, v, r, s)


@external
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
):
    """
    @notice The same, submitted by the receiver only, so that nobody can run ahead of a contract that receives.
    """
    assert to == msg.sender, "credit: caller is not the receiver"
    self._use(RECEIVE_TYPE, owner, to, amount, validAfter, validBefore, nonce, v, r, s)


@external
def cancelAuthorization(authorizer: address, nonce: bytes32, v: uint8, r: bytes32, s: bytes32):
    """
    @notice Spend a nonce so that no authorization can use it.
    """
    assert not self.authorizationState[authorizer][nonce], "credit: authorization is used"
    self._check(authorizer, keccak256(abi_encode(CANCEL_TYPE, authorizer, nonce)), v, r, s)
    self.authorizationState[authorizer][nonce] = True
    log AuthorizationCanceled(authorizer=authorizer, nonce=nonce)


@external
def permit(owner: address, spender: address, amount: uint256, deadline: uint256, v: uint8, r: bytes32, s: bytes32):
    """
    @notice Approve by signature (EIP-2612).
    """
    assert block.timestamp <= deadline, "credit: permit has expired"
    nonce: uint256 = self.nonces[owner]
    self._check(owner, keccak256(abi_encode(PERMIT_TYPE, owner, spender, amount, nonce, deadline)), v, r, s)
    self.nonces[owner] = nonce + 1
    self._approve(owner, spender, amount)


@external
@view
def DOMAIN_SEPARATOR() -> bytes32:
    """
    @notice The EIP-712 domain separator.
    """
    return self._separator()


@external
@view
def eip712Domain() -> (bytes1, String[32], String[8], uint256, address, bytes32, DynArray[uint256, 1]):
    """
    @notice The EIP-712 domain's fields (EIP-5267).
    """
    return 0x0f, self.name, self.version, chain.id, self, empty(bytes32), []


@internal
@view
def _separator() -> bytes32:
    return signatures.separator(keccak256(self.name), keccak256(self.version), self)


@internal
@view
def _check(signer: address, struct_hash: bytes32, v: uint8, r: bytes32, s: bytes32):
    digest: bytes32 = signatures.typed_data(self._separator(), struct_hash)
    assert signer != empty(address), "credit: signer is zero"
    assert signatures.recover_vrs(digest, convert(v, uint256), r, s) == signer, "credit: signature is not the owner's"


@internal
def _use(
    kind: bytes32,
    owner: address,
    to: address,
    amount: uint256,
    valid_after: uint256,
    valid_before: uint256,
    nonce: bytes32,
    v: uint8,
    r: bytes32,
    s: bytes32,
):
    assert block.timestamp > valid_after, "credit: authorization is not valid yet"
    assert block.timestamp < valid_before, "credit: authorization has expired"
    assert not self.authorizationState[owner][nonce], "credit: authorization is used"
    struct_hash: bytes32 = keccak256(abi_encode(kind, owner, to, amount, valid_after, valid_before, nonce))
    self._check(owner, struct_hash, v, r, s)
    self.authorizationState[owner][nonce] = True
    log AuthorizationUsed(authorizer=owner, nonce=nonce)
    self._move(owner, to, amount)


@internal
def _move(owner: address, to: address, amount: uint256):
    assert to != empty(address), "credit: receiver is zero"
    held: uint256 = self.balanceOf[owner]
    assert held >= amount, "credit: balance is too small"
    self.balanceOf[owner] = held - amount
    self.balanceOf[to] += amount
    log IERC20.Transfer(sender=owner, receiver=to, value=amount)


@internal
def _approve(owner: address, spender: address, amount: uint256):
    assert spender != empty(address), "credit: spender is zero"
    self.allowance[owner][spender] = amount
    log IERC20.Approval(owner=owner, spender=spender, value=amount)
