#pragma version 0.4.3
"""
@title IdentityRegistry: who takes part, and where they answer
@notice ERC-8004 identity (draft) over a plain ERC-721. Registration is free and proves nothing by itself: readers join
    it with stake. Ids start at 1, unlike the reference implementation, so that 0 can mean none.
"""
import signatures


struct MetadataEntry:
    metadataKey: String[64]
    metadataValue: Bytes[1024]


interface IERC721Receiver:
    def onERC721Received(operator: address, owner: address, tokenId: uint256, data: Bytes[1024]) -> bytes4: nonpayable


event Transfer:
    sender: indexed(address)
    receiver: indexed(address)
    tokenId: indexed(uint256)


event Approval:
    owner: indexed(address)
    approved: indexed(address)
    tokenId: indexed(uint256)


event ApprovalForAll:
    owner: indexed(address)
    operator: indexed(address)
    approved: bool


event Registered:
    agentId: indexed(uint256)
    agentURI: String[512]
    owner: indexed(address)


event MetadataSet:
    agentId: indexed(uint256)
    indexedMetadataKey: indexed(String[64])
    metadataKey: String[64]
    metadataValue: Bytes[1024]


event URIUpdated:
    agentId: indexed(uint256)
    newURI: String[512]
    updatedBy: indexed(address)


name: public(constant(String[32])) = "AgentIdentity"
symbol: public(constant(String[8])) = "AGENT"

METADATA_ENTRIES_MAX: constant(uint256) = 16
WALLET_KEY: constant(String[64]) = "agentWallet"
WALLET_TYPE: constant(bytes32) = keccak256(
    "AgentWalletSet(uint256 agentId,address newWallet,address owner,uint256 deadline)"
)
# A wallet's consent is for now, not for later: as the ERC-8004 reference.
WALLET_DEADLINE_SECONDS_MAX: constant(uint256) = 300

agentCount: public(uint256)
# The agent an owner registered last, or received first; 0 when it holds none or gave that one away.
agentOf: public(HashMap[address, uint256])
balances: HashMap[address, uint256]
owners: HashMap[uint256, address]
approvals: HashMap[uint256, address]
isApprovedForAll: public(HashMap[address, HashMap[address, bool]])
uris: HashMap[uint256, String[512]]
metadata: HashMap[uint256, HashMap[String[64], Bytes[1024]]]
wallets: HashMap[uint256, address]


@deploy
def __init__():
    pass


@external
def register(agentURI: String[512] = "", entries: DynArray[MetadataEntry, METADATA_ENTRIES_MAX] = []) -> uint256:
    """
    @notice Register the caller as an agent.
    @return The new agent's id.
    """
    agent_id: uint256 = self.agentCount + 1
    self.agentCount = agent_id
    self.owners[agent_id] = msg.sender
    self.balances[msg.sender] += 1
    self.agentOf[msg.sender] = agent_id
    self.uris[agent_id] = agentURI
    self.wallets[agent_id] = msg.sender
    log Transfer(sender=empty(address), receiver=msg.sender, tokenId=agent_id)
    log Registered(agentId=agent_id, agentURI=agentURI, owner=msg.sender)
    self._log_wallet(agent_id, msg.sender)
    for entry: MetadataEntry in entries:
        self._set_metadata(agent_id, entry.metadataKey, entry.metadataValue)
    return agent_id


@external
def setAgentURI(agentId: uint256, newURI: String[512]):
    """
    @notice Say where the agent answers now.
    """
    self._check_controller(agentId)
    self.uris[agentId] = newURI
    log URIUpdated(agentId=agentId, newURI=newURI, updatedBy=msg.sender)


@external
def setMetadata(agentId: uint256, metadataKey: String[64], metadataValue: Bytes[1024]):
    """
    @notice Set one metadata entry.
    """
    self._check_controller(agentId)
    self._set_metadata(agentId, metadataKey, metadataValue)


@external
def setAgentWallet(agentId: uint256, newWallet: address, deadline: uint256, signature: Bytes[65]):
    """
    @notice Name the agent's wallet, which agrees by signature.
    """
    self._check_controller(agentId)
    assert block.timestamp <= deadline, "identity: consent has expired"
    assert deadline <= block.timestamp + WALLET_DEADLINE_SECONDS_MAX, "identity: deadline is too far"
    assert newWallet != empty(address), "identity: wallet is zero"
    separator: bytes32 = signatures.separator(keccak256("ERC8004IdentityRegistry"), keccak256("1"), self)
    struct_hash: bytes32 = keccak256(abi_encode(WALLET_TYPE, agentId, newWallet, self.owners[agentId], deadline))
    signer: address = signatures.recover(signatures.typed_data(separator, struct_hash), signature)
    assert signer == newWallet, "identity: signature is not the wallet's"
    self.wallets[agentId] = newWallet
    self._log_wallet(agentId, newWallet)


@external
def unsetAgentWallet(agentId: uint256):
    """
    @notice Forget the agent's wallet.
    """
    self._check_controller(agentId)
    self._clear_wallet(agentId)


@external
def approve(to: address, tokenId: uint256):
    """
    @notice Let another address move one agent (ERC-721).
    """
    owner: address = self._owner(tokenId)
    assert msg.sender == owner or self.isApprovedForAll[owner][msg.sender], "identity: caller is not the owner"
    self.approvals[tokenId] = to
    log Approval(owner=owner, approved=to, tokenId=tokenId)


@external
def setApprovalForAll(operator: address, approved: bool):
    """
    @notice Let another address act for all of the caller's agents (ERC-721).
    """
    self.isApprovedForAll[msg.sender][operator] = approved
    log ApprovalForAll(owner=msg.sender, operator=operator, approved=approved)


@external
def transferFrom(owner: address, to: address, tokenId: uint256):
    """
    @notice Move an agent (ERC-721).
    """
    self._move(owner, to, tokenId)


@external
def safeTransferFrom(owner: address, to: address, tokenId: uint256, data: Bytes[1024] = b""):
    """
    @notice Move an agent; a contract must agree to take it (ERC-721). It is asked when all is done.
    """
    self._move(owner, to, tokenId)
    if to.is_contract:
        answer: bytes4 = extcall IERC721Receiver(to).onERC721Received(msg.sender, owner, tokenId, data)
        assert answer == method_id("onERC721Received(address,address,uint256,bytes)", output_type=bytes4), "identity: refused"


@external
@view
def ownerOf(tokenId: uint256) -> address:
    """
    @notice The owner; reverts for an unknown agent.
    """
    return self._owner(tokenId)


@external
@view
def balanceOf(owner: address) -> uint256:
    """
    @notice How many agents an address owns.
    """
    assert owner != empty(address), "identity: owner is zero"
    return self.balances[owner]


@external
@view
def tokenURI(tokenId: uint256) -> String[512]:
    """
    @notice Where the agent answers.
    """
    self._owner(tokenId)
    return self.uris[tokenId]


@external
@view
def getApproved(tokenId: uint256) -> address:
    """
    @notice Who else may move this agent.
    """
    self._owner(tokenId)
    return self.approvals[tokenId]


@external
@view
def getMetadata(agentId: uint256, metadataKey: String[64]) -> Bytes[1024]:
    """
    @notice One metadata entry; empty when not set.
    """
    if metadataKey == WALLET_KEY:
        if self.wallets[agentId] == empty(address):
            return b""
        return slice(concat(convert(self.wallets[agentId], bytes20), b""), 0, 20)
    return self.metadata[agentId][metadataKey]


@external
@view
def getAgentWallet(agentId: uint256) -> address:
    """
    @notice The agent's wallet; zero after a transfer, until it is set again.
    """
    return self.wallets[agentId]


@external
@view
def agentAt(i: uint256) -> (uint256, address, String[512]):
    """
    @notice The agent at a position from 0: id, owner, URI.
    """
    assert i < self.agentCount, "identity: no agent at this position"
    return i + 1, self.owners[i + 1], self.uris[i + 1]


@external
@pure
def supportsInterface(interfaceId: bytes4) -> bool:
    """
    @notice ERC-165, ERC-721 and its metadata extension.
    """
    return interfaceId in [0x01ffc9a7, 0x80ac58cd, 0x5b5e139f]


@internal
@view
def _owner(agent_id: uint256) -> address:
    owner: address = self.owners[agent_id]
    assert owner != empty(address), "identity: unknown agent"
    return owner


@internal
@view
def _check_controller(agent_id: uint256):
    owner: address = self._owner(agent_id)
    allowed: bool = msg.sender == owner or self.isApprovedForAll[owner][msg.sender]
    assert allowed or self.approvals[agent_id] == msg.sender, "identity: caller may not act for this agent"


@internal
def _set_metadata(agent_id: uint256, key: String[64], content: Bytes[1024]):
    assert key != WALLET_KEY, "identity: agentWallet is reserved"
    self.metadata[agent_id][key] = content
    log MetadataSet(agentId=agent_id, indexedMetadataKey=key, metadataKey=key, metadataValue=content)


@internal
def _log_wallet(agent_id: uint256, wallet: address):
    content: Bytes[1024] = slice(concat(convert(wallet, bytes20), b""), 0, 20)
    log MetadataSet(agentId=agent_id, indexedMetadataKey=WALLET_KEY, metadataKey=WALLET_KEY, metadataValue=content)


@internal
def _clear_wallet(agent_id: uint256):
    self.wallets[agent_id] = empty(address)
    log MetadataSet(agentId=agent_id, indexedMetadataKey=WALLET_KEY, metadataKey=WALLET_KEY, metadataValue=b"")


@internal
def _move(owner: address, to: address, token_id: uint256):
    self._check_controller(token_id)
    assert self._owner(token_id) == owner, "identity: sender is not the owner"
    assert to != empty(address), "identity: receiver is zero"
    self.approvals[token_id] = empty(address)
    self.balances[owner] -= 1
    self.balances[to] += 1
    self.owners[token_id] = to
    if self.agentOf[owner] == token_id:
        self.agentOf[owner] = 0
    if self.agentOf[to] == 0:
        self.agentOf[to] = token_id
    self._clear_wallet(token_id)
    log Transfer(sender=owner, receiver=to, tokenId=token_id)
