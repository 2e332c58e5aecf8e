// Drives a chain with ethers 6 as an application would. Arguments: URL, private key, ABI (JSON), creation code.
import { ContractFactory, JsonRpcProvider, Wallet, WebSocketProvider, isError } from "ethers";

const [url, key, abi, bytecode] = process.argv.slice(2);
const provider = new JsonRpcProvider(url, undefined, { pollingInterval: 50 });
const wallet = new Wallet(key, provider);
const found = {};

const factory = new ContractFactory(JSON.parse(abi), bytecode, wallet);
const contract = await factory.deploy(5);
await contract.waitForDeployment();
found.address = (await contract.getAddress()).toLowerCase();
found.value = Number(await contract.value());

const receipts = [];
for (let step = 1; step <= 3; step += 1) {
  const sent = await contract.add(step);
  receipts.push(await sent.wait());
}
found.statuses = receipts.map((receipt) => receipt.status);
found.after = Number(await contract.value());
const events = await contract.queryFilter(contract.filters.Added(), 0, "latest");
found.events = events.map((event) => [event.args.by.toLowerCase() === wallet.address.toLowerCase(), Number(event.args.amount)]);
try {
  await contract.add.staticCall(0);
} catch (error) {
  found.reverted = [isError(error, "CALL_EXCEPTION"), error.reason];
}
try {
  await wallet.sendTransaction({ to: wallet.address, value: 10n ** 30n });
} catch (error) {
  found.poor = error.code;
}
try {
  await wallet.sendTransaction({ to: wallet.address, nonce: 0 });
} catch (error) {
  found.stale = error.code;
}
found.legacy = (await (await wallet.sendTransaction({ to: wallet.address, value: 1, type: 0 })).wait()).status;
found.listed = (await (await wallet.sendTransaction({ to: wallet.address, value: 1, type: 1, accessList: [] })).wait()).status;
const block = await provider.getBlock("latest", true);
found.block = [block.number >= 6, block.prefetchedTransactions.length >= 1, (await provider.getBlock(block.hash)).number === block.number];
found.fees = (await provider.getFeeData()).maxFeePerGas > 0n;
found.storage = Number(await provider.getStorage(found.address, 0));
found.network = Number((await provider.getNetwork()).chainId);

// Told of news: over HTTP by filters that are asked again and again, over WebSocket by subscriptions.
const socket = new WebSocketProvider(url.replace("http", "ws"));
const heard = (source, event) => new Promise((resolve) => source.once(event, (...values) => resolve(values)));
const listening = contract.connect(socket);
const news = Promise.all([
  heard(contract, "Added"),
  heard(provider, "pending"),
  heard(listening, "Added"),
  heard(socket, "block"),
  heard(socket, "pending"),
]);
// `once` subscribes without waiting; an answered request on each provider says that the subscriptions are there.
await Promise.all([provider.send("eth_chainId", []), socket.send("eth_chainId", [])]);
const added = await contract.add(9);
const included = await added.wait();
const [polled, polledHash, told, [height], [hash]] = await news;
found.told = [Number(polled[1]), polledHash[0] === added.hash, Number(told[1]), height >= included.blockNumber, hash === added.hash];
found.over = Number(await listening.value());
found.waited = (await socket.waitForTransaction(added.hash)).status;
console.log(JSON.stringify(found));
// ethers drops its filters in the background, and calls it an error when it is destroyed meanwhile.
process.on("unhandledRejection", (error) => {
  if (!String(error.message).startsWith("provider destroyed")) throw error;
});
await socket.destroy();
provider.destroy();
