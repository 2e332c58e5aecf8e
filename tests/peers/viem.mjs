// Drives a chain with viem as an application would. Arguments: URL, private key, ABI (JSON), creation code, chain id.
import { BaseError, ContractFunctionRevertedError, createPublicClient, createWalletClient, defineChain, encodeFunctionData, http, webSocket } from "viem";
import { privateKeyToAccount } from "viem/accounts";

const [url, key, abiText, bytecode, chainId] = process.argv.slice(2);
const abi = JSON.parse(abiText);
const chain = defineChain({
  id: Number(chainId),
  name: "embedded",
  nativeCurrency: { name: "Ether", symbol: "ETH", decimals: 18 },
  rpcUrls: { default: { http: [url] } },
});
const account = privateKeyToAccount(key);
const transport = http(url, { batch: true });
const reader = createPublicClient({ chain, transport, pollingInterval: 50 });
const wallet = createWalletClient({ account, chain, transport });
const found = {};

const deployed = await reader.waitForTransactionReceipt({ hash: await wallet.deployContract({ abi, bytecode, args: [5n] }) });
found.address = deployed.contractAddress.toLowerCase();
const address = found.address;
const { request } = await reader.simulateContract({ account, address, abi, functionName: "add", args: [7n] });
const receipt = await reader.waitForTransactionReceipt({ hash: await wallet.writeContract(request) });
found.status = receipt.status;
const [value, balance, block, code] = await Promise.all([
  reader.readContract({ address, abi, functionName: "value" }),
  reader.getBalance({ address: account.address }),
  reader.getBlock({ includeTransactions: true }),
  reader.getCode({ address }),
]);
found.value = Number(value);
found.rich = balance > 10n ** 18n;
found.block = [block.transactions[0].hash === receipt.transactionHash, code.length > 4];
found.logs = (await reader.getContractEvents({ address, abi, eventName: "Added", fromBlock: 0n })).map((log) => Number(log.args.amount));
try {
  await reader.simulateContract({ account, address, abi, functionName: "add", args: [0n] });
} catch (error) {
  const reverted = error instanceof BaseError && error.walk((inner) => inner instanceof ContractFunctionRevertedError);
  found.reverted = reverted ? reverted.reason : String(error);
}
found.fees = (await reader.estimateFeesPerGas()).maxFeePerGas > 0n;
found.history = (await reader.getFeeHistory({ blockCount: 3, rewardPercentiles: [10, 90] })).reward.length;

// Filters, overrides and access lists over HTTP.
const filters = {
  event: await reader.createContractEventFilter({ abi, address, eventName: "Added" }),
  block: await reader.createBlockFilter(),
  pending: await reader.createPendingTransactionFilter(),
};
const socket = createPublicClient({ chain, transport: webSocket(url.replace("http", "ws")) });
const told = { logs: [], blocks: [], hashes: [] };
const watching = [
  socket.watchContractEvent({ abi, address, eventName: "Added", onLogs: (logs) => told.logs.push(...logs) }),
  socket.watchBlockNumber({ onBlockNumber: (number) => told.blocks.push(number) }),
  socket.watchPendingTransactions({ onTransactions: (hashes) => told.hashes.push(...hashes) }),
];
// Watching begins without being waited for; an answer on the same socket says that the subscriptions are there.
await socket.getChainId();
const hash = await wallet.writeContract({ address, abi, functionName: "add", args: [8n] });
const second = await reader.waitForTransactionReceipt({ hash });
const until = async (condition) => {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 20));
};
await until(() => told.logs.length && told.blocks.includes(second.blockNumber) && told.hashes.length);
found.told = [Number(told.logs[0].args.amount), told.hashes.includes(hash)];
found.filtered = [
  (await reader.getFilterChanges({ filter: filters.event })).map((log) => Number(log.args.amount)),
  (await reader.getFilterChanges({ filter: filters.block })).includes(second.blockHash),
  (await reader.getFilterChanges({ filter: filters.pending })).includes(hash),
  await reader.uninstallFilter({ filter: filters.event }),
];
watching.forEach((stop) => stop());
const data = encodeFunctionData({ abi, functionName: "add", args: [1n] });
const { accessList, gasUsed } = await reader.createAccessList({ account: account.address, to: address, data });
found.listed = [accessList[0].address === address, accessList[0].storageKeys.length, gasUsed > 21000n];
const slot = "0x" + "0".repeat(64);
const stateOverride = [{ address, stateDiff: [{ slot, value: "0x" + "0".repeat(62) + "2a" }] }];
const overridden = await reader.call({ account: account.address, to: address, data, stateOverride });
found.overridden = Number(overridden.data);
console.log(JSON.stringify(found));
(await socket.transport.getRpcClient()).close();
