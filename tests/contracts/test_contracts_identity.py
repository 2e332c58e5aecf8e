"""IdentityRegistry: the ERC-8004 functions, who may call them, and what a transfer changes."""

import boa
import pytest
from eth_abi import encode

from deaios.primitives.hashing import keccak256

ZERO = "0x" + "00" * 20


@pytest.fixture
def registry(world, deploy_contract):
    return deploy_contract("IdentityRegistry")


def test_registration_in_all_three_forms(world, registry):
    assert registry.agentOf(world.buyer.text) == 0
    assert registry.register(sender=world.buyer.text) == 1
    assert registry.register("http://a", sender=world.provider.text) == 2
    metadata = [("role", b"provider"), ("region", b"eu")]
    assert registry.register("http://b", metadata, sender=world.stranger.text) == 3
    assert registry.agentCount() == 3
    assert registry.agentAt(2) == (3, world.stranger.text, "http://b")
    assert bytes(registry.getMetadata(3, "role")) == b"provider"
    assert bytes(registry.getMetadata(3, "none")) == b""
    assert registry.getAgentWallet(3) == world.stranger.text
    assert bytes(registry.getMetadata(3, "agentWallet")) == world.stranger.address
    assert registry.ownerOf(2) == world.provider.text
    assert registry.tokenURI(2) == "http://a"
    with boa.reverts("identity: no agent at this position"):
        registry.agentAt(3)
    with boa.reverts("identity: unknown agent"):
        registry.ownerOf(4)


def test_selectors_are_those_of_the_standard(registry):
    signatures = {
        "register()": "1aa3a008",
        "register(string)": "f2c298be",
        "register(string,(string,bytes)[])": "8ea42286",
        "safeTransferFrom(address,address,uint256)": "42842e0e",
        "safeTransferFrom(address,address,uint256,bytes)": "b88d4fde",
        "setAgentURI(uint256,string)": keccak256(b"setAgentURI(uint256,string)")[:4].hex(),
        "setAgentWallet(uint256,address,uint256,bytes)": keccak256(b"setAgentWallet(uint256,address,uint256,bytes)")[
            :4
        ].hex(),
    }
    known = {function.full_signature: function.method_id.hex() for function in registry._functions}
    assert {name: known[name] for name in signatures} == signatures
    for interface in ("01ffc9a7", "80ac58cd", "5b5e139f"):
        assert registry.supportsInterface(bytes.fromhex(interface))
    assert not registry.supportsInterface(bytes.fromhex("ffffffff"))


def test_only_owner_or_approved_may_change_an_agent(world, registry):
    owner, other = world.buyer.text, world.stranger.text
    registry.register("http://a", sender=owner)
    calls = [
        lambda who: registry.setAgentURI(1, "http://c", sender=who),
        lambda who: registry.setMetadata(1, "role", b"storage", sender=who),
        lambda who: registry.unsetAgentWallet(1, sender=who),
        lambda who: registry.transferFrom(owner, other, 1, sender=who),
    ]
    for call in calls:
        with boa.reverts("identity: caller may not act for this agent"):
            call(other)
    with boa.reverts("identity: caller is not the owner"):
        registry.approve(other, 1, sender=other)
    registry.approve(other, 1, sender=owner)
    for call in calls:
        call(other)
    assert registry.ownerOf(1) == other
    assert registry.getApproved(1) == ZERO


def test_the_wallet_key_is_reserved_and_cleared_on_transfer(world, registry):
    owner, other = world.buyer.text, world.stranger.text
    with boa.reverts("identity: agentWallet is reserved"):
        registry.register("", [("agentWallet", b"x")], sender=owner)
    registry.register(sender=owner)
    with boa.reverts("identity: agentWallet is reserved"):
        registry.setMetadata(1, "agentWallet", b"x", sender=owner)
    registry.transferFrom(owner, other, 1, sender=owner)
    assert registry.getAgentWallet(1) == ZERO
    assert bytes(registry.getMetadata(1, "agentWallet")) == b""
    assert (registry.agentOf(owner), registry.agentOf(other)) == (0, 1)
    assert (registry.balanceOf(owner), registry.balanceOf(other)) == (0, 1)


def test_a_wallet_agrees_by_signature_and_for_now(world, registry):
    registry.register(sender=world.buyer.text)
    kind = keccak256(b"AgentWalletSet(uint256 agentId,address newWallet,address owner,uint256 deadline)")

    def sign(key, deadline):
        domain = keccak256(
            encode(
                ["bytes32", "bytes32", "bytes32", "uint256", "address"],
                [
                    keccak256(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                    keccak256(b"ERC8004IdentityRegistry"),
                    keccak256(b"1"),
                    world.chain_id,
                    str(registry.address),
                ],
            )
        )
        fields = [kind, 1, world.stranger.text, world.buyer.text, deadline]
        struct_hash = keccak256(encode(["bytes32", "uint256", "address", "address", "uint256"], fields))
        return key.sign_digest(keccak256(b"\x19\x01" + domain + struct_hash))

    def set_wallet(signature, deadline):
        registry.setAgentWallet(1, world.stranger.text, deadline, signature, sender=world.buyer.text)

    soon = world.now + 100
    with boa.reverts("identity: signature is not the wallet's"):
        set_wallet(sign(world.buyer.key, soon), soon)
    with boa.reverts("identity: deadline is too far"):
        set_wallet(sign(world.stranger.key, world.now + 301), world.now + 301)
    with boa.reverts("identity: consent has expired"):
        set_wallet(sign(world.stranger.key, world.now - 1), world.now - 1)
    set_wallet(sign(world.stranger.key, soon), soon)
    assert registry.getAgentWallet(1) == world.stranger.text
