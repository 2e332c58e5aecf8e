"""Credit: ERC-20, EIP-3009 and EIP-2612, and what they refuse."""

import boa
import pytest

from deaios.ledger import structs
from deaios.ledger.eip712 import sign_struct
from deaios.primitives.hashing import keccak256
from deaios.primitives.units import CREDIT

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def split(signature):
    return signature[64], signature[:32], signature[32:64]


def test_money_moves_and_nothing_is_made(world):
    credit, a, b = world.credit, world.buyer, world.stranger
    before = world.balance(a), world.balance(b)
    assert credit.transfer(b.text, 5, sender=a.text)
    credit.approve(b.text, 10, sender=a.text)
    assert credit.transferFrom(a.text, b.text, 7, sender=b.text)
    assert (world.balance(a), world.balance(b)) == (before[0] - 12, before[1] + 12)
    assert credit.allowance(a.text, b.text) == 3
    with boa.reverts("credit: allowance is too small"):
        credit.transferFrom(a.text, b.text, 4, sender=b.text)
    with boa.reverts("credit: balance is too small"):
        credit.transfer(b.text, world.balance(a) + 1, sender=a.text)
    with boa.reverts("credit: receiver is zero"):
        credit.transfer("0x" + "00" * 20, 1, sender=a.text)
    assert world.total_held() == credit.totalSupply()


def test_an_endless_allowance_is_not_used_up(world):
    world.approve(world.buyer, world.channels)
    world.credit.transferFrom(world.buyer.text, world.stranger.text, 9, sender=world.channels.address)
    assert world.credit.allowance(world.buyer.text, world.channels.address) == 2**256 - 1


def test_a_transfer_to_oneself_changes_nothing(world):
    before = world.balance(world.buyer)
    world.credit.transfer(world.buyer.text, before, sender=world.buyer.text)
    assert world.balance(world.buyer) == before


def test_burning_takes_from_the_supply(world):
    supply = world.credit.totalSupply()
    world.credit.burn(CREDIT, sender=world.buyer.text)
    assert world.credit.totalSupply() == supply - CREDIT == world.total_held()
    with boa.reverts("credit: balance is too small"):
        world.credit.burn(world.balance(world.buyer) + 1, sender=world.buyer.text)


def test_domain_is_that_of_the_python_side(world):
    assert bytes(world.credit.DOMAIN_SEPARATOR()) == world.token_domain().separator()
    fields, name, version, chain_id, contract, salt, extensions = world.credit.eip712Domain()
    assert (bytes(fields), name, version, chain_id) == (b"\x0f", "DeAIOS Credit", "1", world.chain_id)
    assert (str(contract), bytes(salt), extensions) == (str(world.credit.address), bytes(32), [])


def authorization(world, amount=100, after=0, before=2**64, nonce=b"\x01" * 32, to=None):
    to = (to or world.stranger).address
    return structs.ReceiveWithAuthorization(world.buyer.address, to, amount, after, before, nonce)


def receive(world, item, signature, sender=None):
    arguments = world.tuple_of(item)
    text = (sender or world.stranger).text
    return world.credit.receiveWithAuthorization(*arguments, *split(signature), sender=text)


def test_receive_with_authorization_works_once_and_for_its_receiver_only(world):
    item = authorization(world)
    signature = sign_struct(world.buyer.key, world.token_domain(), item)
    with boa.reverts("credit: caller is not the receiver"):
        receive(world, item, signature, world.accuser)
    before = world.balance(world.stranger)
    receive(world, item, signature)
    assert world.balance(world.stranger) == before + 100
    assert world.credit.authorizationState(world.buyer.text, item.nonce)
    with boa.reverts("credit: authorization is used"):
        receive(world, item, signature)


@pytest.mark.parametrize(
    ("after", "before", "message"),
    [
        (0, 0, "credit: authorization is not valid yet"),
        (1, 0, "credit: authorization is not valid yet"),
        (-1, 0, "credit: authorization has expired"),
        (-1, 1, None),
    ],
)
def test_authorization_is_valid_strictly_between_its_times(world, after, before, message):
    item = authorization(world, after=world.now + after, before=world.now + before)
    signature = sign_struct(world.buyer.key, world.token_domain(), item)
    if message is None:
        receive(world, item, signature)
    else:
        with boa.reverts(message):
            receive(world, item, signature)


def test_a_signature_has_one_form(world):
    item = authorization(world)
    signature = sign_struct(world.buyer.key, world.token_domain(), item)
    high_s = (ORDER - int.from_bytes(signature[32:64])).to_bytes(32)
    restated = signature[:32] + high_s + bytes([55 - signature[64]])
    wrong_v = signature[:64] + bytes([signature[64] - 27])
    for bad in (restated, wrong_v, bytes(65), sign_struct(world.stranger.key, world.token_domain(), item)):
        with boa.reverts("credit: signature is not the owner's"):
            receive(world, item, bad)


def test_transfer_authorization_is_another_type(world):
    item = authorization(world)
    kind = keccak256(
        b"TransferWithAuthorization(address from,address to,uint256 value,"
        b"uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    )
    words = [item.from_.rjust(32, b"\0"), item.to.rjust(32, b"\0")]
    words += [n.to_bytes(32) for n in (item.value, item.valid_after, item.valid_before)]
    digest = keccak256(b"\x19\x01" + world.token_domain().separator() + keccak256(b"".join([kind, *words, item.nonce])))
    arguments = world.tuple_of(item)
    receive_signature = sign_struct(world.buyer.key, world.token_domain(), item)
    with boa.reverts("credit: signature is not the owner's"):
        world.credit.transferWithAuthorization(*arguments, *split(receive_signature), sender=world.accuser.text)
    signature = world.buyer.key.sign_digest(digest)
    world.credit.transferWithAuthorization(*arguments, *split(signature), sender=world.accuser.text)
    with boa.reverts("credit: authorization is used"):
        world.credit.transferWithAuthorization(*arguments, *split(signature), sender=world.accuser.text)


def test_a_cancelled_authorization_is_spent(world):
    nonce = b"\x01" * 32
    kind = keccak256(b"CancelAuthorization(address authorizer,bytes32 nonce)")
    struct_hash = keccak256(kind + world.buyer.address.rjust(32, b"\0") + nonce)
    digest = keccak256(b"\x19\x01" + world.token_domain().separator() + struct_hash)
    with boa.reverts("credit: signature is not the owner's"):
        forged = split(world.stranger.key.sign_digest(digest))
        world.credit.cancelAuthorization(world.buyer.text, nonce, *forged, sender=world.stranger.text)
    signature = split(world.buyer.key.sign_digest(digest))
    world.credit.cancelAuthorization(world.buyer.text, nonce, *signature, sender=world.stranger.text)
    item = authorization(world)
    with boa.reverts("credit: authorization is used"):
        receive(world, item, sign_struct(world.buyer.key, world.token_domain(), item))


def test_permit_approves_once_and_in_time(world):
    kind = keccak256(b"Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)")
    words = [world.buyer.address.rjust(32, b"\0"), world.stranger.address.rjust(32, b"\0")]
    words += [n.to_bytes(32) for n in (77, 0, world.now + 5)]
    digest = keccak256(b"\x19\x01" + world.token_domain().separator() + keccak256(b"".join([kind, *words])))
    signature = split(world.buyer.key.sign_digest(digest))
    arguments = (world.buyer.text, world.stranger.text, 77, world.now + 5, *signature)
    world.credit.permit(*arguments, sender=world.accuser.text)
    assert world.credit.allowance(world.buyer.text, world.stranger.text) == 77
    with boa.reverts("credit: signature is not the owner's"):
        world.credit.permit(*arguments, sender=world.accuser.text)
    world.wait(6)
    with boa.reverts("credit: permit has expired"):
        world.credit.permit(*arguments, sender=world.accuser.text)
