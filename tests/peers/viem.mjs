// Drives a chain with viem as an application would. Arguments: URL, private key, ABI (JSON), creation code, chain id.
import { BaseError, ContractFunctionRevertedError, createPublicClient, createWalletClient, defineChain, http } from "viem";
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
console.log(JSON.stringify(found));
