#pragma version 0.4.3
"""
@title A token and a participant in one, which calls back into whoever moves it
@notice Keeps honest balances, so that money that is paid twice shows. While it is armed, every transfer, authorization
    and burn calls each of the armed calls once, as this contract itself; what became of them is counted.
"""

struct Call:
    target: address
    payload: Bytes[8192]


CALLS_MAX: constant(uint256) = 96

totalSupply: public(uint256)
balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])

armed: DynArray[Call, CALLS_MAX]
is_inside: bool
hooks: public(uint256)
through: uint256[CALLS_MAX]
refused: uint256[CALLS_MAX]


@deploy
def __init__(holder: address, supply: uint256):
    self.totalSupply = supply
    self.balanceOf[holder] = supply


@external
def arm(calls: DynArray[Call, CALLS_MAX]):
    """
    @notice From now on, call these whenever money moves; forgets what was counted.
    """
    self.armed = calls
    self.hooks = 0
    self.through = empty(uint256[CALLS_MAX])
    self.refused = empty(uint256[CALLS_MAX])


@external
def act(target: address, payload: Bytes[8192]) -> bool:
    """
    @notice Call something as this contract, as any participant would.
    """
    return raw_call(target, payload, revert_on_failure=False)


@external
@view
def outcomes() -> (uint256[CALLS_MAX], uint256[CALLS_MAX]):
    """
    @notice How often each armed call went through, and how often it was refused.
    """
    return self.through, self.refused


@external
def transfer(to: address, amount: uint256) -> bool:
    """
    @notice Move the caller's money, and call back.
    """
    self._move(msg.sender, to, amount)
    self._call_back()
    return True


@external
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    """
    @notice Move money by an allowance, and call back.
    """
    allowed: uint256 = self.allowance[owner][msg.sender]
    if allowed != max_value(uint256):
        self.allowance[owner][msg.sender] = allowed - amount
    self._move(owner, to, amount)
    self._call_back()
    return True


@external
def approve(spender: address, amount: uint256) -> bool:
    """
    @notice Allow a spender.
    """
    self.allowance[msg.sender][spender] = amount
    return True


@external
def burn(amount: uint256):
    """
    @notice Destroy the caller's money, and call back.
    """
    self.balanceOf[msg.sender] -= amount
    self.totalSupply -= amount
    self._call_back()


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
    @notice Move money without looking at the signature, and call back.
    """
    self._move(owner, to, amount)
    self._call_back()


@internal
def _move(owner: address, to: address, amount: uint256):
    self.balanceOf[owner] -= amount
    self.balanceOf[to] += amount


@internal
def _call_back():
    if self.is_inside:
        return
    self.is_inside = True
    self.hooks += 1
    for i: uint256 in range(len(self.armed), bound=CALLS_MAX):
        item: Call = self.armed[i]
        if raw_call(item.target, item.payload, revert_on_failure=False):
            self.through[i] += 1
        else:
            self.refused[i] += 1
    self.is_inside = False
