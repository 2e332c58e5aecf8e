"""Engines, tokenizer, template, seeded sampling, and the one-prefill check of what an engine said."""
