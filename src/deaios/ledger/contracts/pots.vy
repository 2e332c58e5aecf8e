#pragma version 0.4.3
"""
@title Shares of a pot of money, rounded in the pot's favour
@notice Every pot counts one unit of money and SCALE shares that nobody holds. They make the first price, and whoever
    gives money to a pot with few shares gives it to them, so that a price cannot be driven up against who comes next.
    Money is below 2^96 and shares below 2^159, so that no product overflows.
"""

SCALE: constant(uint256) = 10**9
SHARES_MAX: constant(uint256) = 2**159 - 1
# A word: generation << 160 | shares. A pot that was emptied begins a new generation, and old shares are worth nothing.
SHARES_BITS: constant(uint256) = 160
SHARES_MASK: constant(uint256) = 2**160 - 1


@internal
@pure
def live(account: uint256, pot: uint256) -> uint256:
    """
    @notice The shares in an account's word, 0 if they are of another generation than the pot's.
    """
    return account & SHARES_MASK if account >> SHARES_BITS == pot >> SHARES_BITS else 0


@internal
@pure
def add(account: uint256, pot: uint256, shares: uint256) -> uint256:
    """
    @notice The account's word with more shares of the pot's generation.
    """
    return ((pot >> SHARES_BITS) << SHARES_BITS) | (self.live(account, pot) + shares)


@internal
@pure
def emptied(pot: uint256) -> uint256:
    """
    @notice The pot's word when all its money is gone: no shares, and a new generation.
    """
    return ((pot >> SHARES_BITS) + 1) << SHARES_BITS


@internal
@pure
def shares_for(amount: uint256, money: uint256, pot: uint256) -> uint256:
    """
    @notice Shares that are given for money, rounded down.
    """
    return amount * ((pot & SHARES_MASK) + SCALE) // (money + 1)


@internal
@pure
def shares_of(amount: uint256, money: uint256, pot: uint256) -> uint256:
    """
    @notice Shares that must be given up for money, rounded up.
    """
    return (amount * ((pot & SHARES_MASK) + SCALE) + money) // (money + 1)


@internal
@pure
def money_for(shares: uint256, money: uint256, pot: uint256) -> uint256:
    """
    @notice What shares are worth, rounded down; never more than the money.
    """
    return shares * (money + 1) // ((pot & SHARES_MASK) + SCALE)
