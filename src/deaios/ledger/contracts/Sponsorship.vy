#pragma version 0.4.3
#pragma nonreentrancy on
"""
@title Sponsorship: a newcomer's first stake, lent by anybody and repaid from its first earnings
@notice A sponsor gives a newcomer the seed, which the newcomer stakes as its own, and backs it: it delegates the rest
    that a service asks for. The newcomer signed that what it earns over channels repays `owed` before it is paid
    anything (Channels.pledge). The backing never becomes the newcomer's: the sponsor takes it back after the term.
    So a sponsor risks the seed, and of the backing what a judge slashes; a newcomer risks nothing but its earnings.
    One sponsorship for a key, ever.
    Money held = sum over loans that were neither backed nor recalled of their backing.
"""


interface Token:
    def balanceOf(owner: address) -> uint256: view
    def approve(spender: address, amount: uint256) -> bool: nonpayable
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def transferFrom(owner: address, to: address, amount: uint256) -> bool: nonpayable


interface Channels:
    def pledge(
        receiver: address, creditor: address, amount: uint128, terms: bytes32, deadline: uint256, signature: Bytes[65]
    ): nonpayable


interface Staking:
    def accountOf(operator: address, holder: address) -> (uint256, uint256, uint256): view
    def delegate(operator: address, amount: uint256): nonpayable
    def undelegate(operator: address, amount: uint256): nonpayable
    def withdrawFrom(operator: address): nonpayable


flag Phase:
    PROMISED
    BACKED
    RECALLED


struct Loan:
    sponsor: address
    backing: uint256
    # Not before this time can the sponsor take the backing back.
    until: uint256
    phase: Phase


event Sponsored:
    newcomer: indexed(address)
    sponsor: indexed(address)
    seed: uint256
    backing: uint256
    owed: uint128
    until: uint256


event Backed:
    newcomer: indexed(address)
    sponsor: indexed(address)
    amount: uint256


event Recalled:
    newcomer: indexed(address)
    sponsor: indexed(address)
    amount: uint256


event Returned:
    newcomer: indexed(address)
    sponsor: indexed(address)
    amount: uint256


TERM_SECONDS_MAX: constant(uint256) = 366 * 86400

token: public(address)
channels: public(address)
staking: public(address)

loans: HashMap[address, Loan]


@deploy
def __init__(token: address, channels: address, staking: address):
    assert token != empty(address), "sponsorship: token is zero"
    assert channels != empty(address), "sponsorship: channels are zero"
    assert staking != empty(address), "sponsorship: staking is zero"
    self.token = token
    self.channels = channels
    self.staking = staking


@external
def sponsor(
    newcomer: address,
    seed: uint256,
    backing: uint256,
    owed: uint128,
    termSeconds: uint256,
    deadline: uint256,
    signature: Bytes[65],
):
    """
    @notice Sponsor a newcomer, who signed the pledge of these terms for this contract; the caller has approved seed
        and backing.
    """
    assert self.loans[newcomer].sponsor == empty(address), "sponsorship: key was sponsored before"
    assert seed > 0, "sponsorship: seed is zero"
    assert termSeconds <= TERM_SECONDS_MAX, "sponsorship: term is too long"
    until: uint256 = block.timestamp + termSeconds
    self.loans[newcomer] = Loan(sponsor=msg.sender, backing=backing, until=until, phase=Phase.PROMISED)
    log Sponsored(newcomer=newcomer, sponsor=msg.sender, seed=seed, backing=backing, owed=owed, until=until)
    terms: bytes32 = keccak256(abi_encode(seed, backing, termSeconds))
    extcall Channels(self.channels).pledge(newcomer, msg.sender, owed, terms, deadline, signature)
    if backing > 0:
        assert extcall Token(self.token).transferFrom(msg.sender, self, backing), "sponsorship: transfer failed"
    assert extcall Token(self.token).transferFrom(msg.sender, newcomer, seed), "sponsorship: transfer failed"


@external
def back(newcomer: address):
    """
    @notice Delegate the backing to a newcomer that has staked its seed; anyone may ask for it.
    """
    loan: Loan = self.loans[newcomer]
    assert loan.phase == Phase.PROMISED, "sponsorship: no backing waits"
    self.loans[newcomer].phase = Phase.BACKED
    log Backed(newcomer=newcomer, sponsor=loan.sponsor, amount=loan.backing)
    if loan.backing > 0:
        assert extcall Token(self.token).approve(self.staking, loan.backing), "sponsorship: approval failed"
        extcall Staking(self.staking).delegate(newcomer, loan.backing)


@external
def recall(newcomer: address):
    """
    @notice Take the backing back after the term: at once where it was never used, else it begins to unbond.
    """
    loan: Loan = self.loans[newcomer]
    assert msg.sender == loan.sponsor, "sponsorship: caller is not the sponsor"
    assert block.timestamp >= loan.until, "sponsorship: term has not passed"
    assert loan.phase != Phase.RECALLED, "sponsorship: backing was recalled"
    self.loans[newcomer].phase = Phase.RECALLED
    amount: uint256 = loan.backing
    if loan.phase == Phase.BACKED:
        amount = (staticcall Staking(self.staking).accountOf(newcomer, self))[0]
    log Recalled(newcomer=newcomer, sponsor=loan.sponsor, amount=amount)
    if amount == 0:
        return
    if loan.phase == Phase.BACKED:
        extcall Staking(self.staking).undelegate(newcomer, amount)
    else:
        self._pay(loan.sponsor, amount)


@external
def collect(newcomer: address):
    """
    @notice Hand the sponsor a recalled backing that has unbonded; anyone may ask for it.
    """
    loan: Loan = self.loans[newcomer]
    assert loan.phase == Phase.RECALLED, "sponsorship: backing was not recalled"
    held: uint256 = staticcall Token(self.token).balanceOf(self)
    extcall Staking(self.staking).withdrawFrom(newcomer)
    amount: uint256 = staticcall Token(self.token).balanceOf(self) - held
    log Returned(newcomer=newcomer, sponsor=loan.sponsor, amount=amount)
    if amount > 0:
        self._pay(loan.sponsor, amount)


@external
@view
def loanOf(newcomer: address) -> (address, uint256, uint256, uint256):
    """
    @notice A newcomer's sponsor, the backing, until when it cannot be recalled, and the phase: 0 none, 1 promised,
        2 backed, 4 recalled.
    """
    loan: Loan = self.loans[newcomer]
    return loan.sponsor, loan.backing, loan.until, convert(loan.phase, uint256)


@internal
def _pay(to: address, amount: uint256):
    assert extcall Token(self.token).transfer(to, amount), "sponsorship: transfer failed"
