// Buys completions with stock x402 clients as an application would. Arguments: gateway's URL, chain's URL, private key, scheme.
import { wrapFetchWithPayment, x402Client, decodePaymentResponseHeader } from "@x402/fetch";
import { toClientEvmSigner } from "@x402/evm";
import { BatchSettlementEvmScheme } from "@x402/evm/batch-settlement/client";
import { ExactEvmScheme } from "@x402/evm/exact/client";
import { createPublicClient, http } from "viem";
import { privateKeyToAccount } from "viem/accounts";

const [url, chainUrl, key, schemeName] = process.argv.slice(2);
const reader = createPublicClient({ transport: http(chainUrl) });
const signer = toClientEvmSigner(privateKeyToAccount(key), reader);
const scheme = schemeName === "exact" ? new ExactEvmScheme(signer) : new BatchSettlementEvmScheme(signer);
const client = new x402Client().register("eip155:*", scheme).setSpendControls(false);
const pay = wrapFetchWithPayment(fetch, client);
const path = `${url}/v1/chat/completions`;
const body = { model: "tiny", messages: [{ role: "user", content: "hello" }], max_tokens: 50 };

async function ask(extra = {}) {
  const response = await pay(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, ...extra }),
  });
  const header = response.headers.get("PAYMENT-RESPONSE");
  return { status: response.status, text: await response.text(), settled: header && decodePaymentResponseHeader(header) };
}

const found = { answers: [await ask(), await ask(), await ask({ stream: true }), await ask()] };
if (schemeName !== "exact") found.refund = await scheme.refund(path);
console.log(JSON.stringify(found));
