"""Somebody else's inference server as an engine: token ids in, token ids out, and no logits in between.

Rules (`dialects`, `prompts`, `texts`) are pure; `client` talks. What such an answer promises is at most what the server
gives: token ids make level 1 at temperature 0 and, where the server has our logits processor, level 2; text makes
level 0 (docs/engines.md).
"""
