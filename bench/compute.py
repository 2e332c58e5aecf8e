"""The compute rows: what a check costs beside the generation, and what verifiability costs the provider."""

from collections.abc import Iterator
from pathlib import Path

import platformdirs

from bench.rows import Row, measure_pair
from deaios.compute.engine import Step
from deaios.compute.engines import open_engine
from deaios.compute.expansion import expand_to_f16
from deaios.compute.generation import Generation
from deaios.compute.records import DEFAULT_THRESHOLDS
from deaios.compute.sampling import sample
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.compute.verification import verify_output
from deaios.ledger.structs import FinishReason, Params
from deaios.node.model_package import fetch_default_model

TOKENS = 64
SEED = bytes(range(32))
QUESTION = [{"role": "user", "content": "Describe a day in the life of a lighthouse keeper."}]
PARAMS = Params(800, 0, 1000, TOKENS, (), (), bytes(32))


def measure() -> Iterator[Row]:
    cache = Path(platformdirs.user_cache_dir("deaios")) / "models"
    source = fetch_default_model(cache)
    served = cache / "SmolLM2-135M-Instruct.F16.gguf"
    if not served.exists():
        expand_to_f16(source, served)
    tokenizer = Tokenizer.from_gguf(source)
    prompt = ChatTemplate.from_gguf(source).render_ids(QUESTION, tokenizer)
    engine = open_engine("llama", served, threads=1, context_tokens=1024, sequences_max=1)
    referee = open_engine("numpy", served, threads=1, context_tokens=1024, sequences_max=1)
    produced: list[tuple[int, ...]] = []
    rows = []

    def generate() -> None:
        generation = Generation(len(prompt), PARAMS, SEED, tokenizer)
        (logits,) = engine.decode([Step(0, 0, prompt, 1)])
        rows.clear()
        while True:
            rows.append(logits[-1].copy())
            sampled = generation.offer(logits[-1])
            if sampled.finish is not None:
                break
            (logits,) = engine.decode([Step(0, generation.position - 1, (sampled.token,), 1)])
        engine.forget(0)
        produced[:] = [generation.output_ids]

    def bare() -> None:
        engine.decode([Step(0, 0, prompt, 1)])
        for place, token in enumerate(produced[0][:-1]):
            engine.decode([Step(0, len(prompt) + place, (token,), 1)])
        engine.forget(0)

    def verify_with(judge: object) -> None:
        ids = produced[0]
        reason = FinishReason.LENGTH if len(ids) == TOKENS else FinishReason.STOP_TOKEN
        report = verify_output(judge, prompt, ids, PARAMS, SEED, reason, 0, DEFAULT_THRESHOLDS, tokenizer)
        assert report.ok, report.violations

    generate()
    for name, judge in (("llama", engine), ("numpy", referee)):
        ours, peer = measure_pair(lambda judge=judge: verify_with(judge), generate, rounds=5)
        yield Row(f"compute.verify_over_generate.{name}", ours, "CPU-s", "generation by llama", peer)
    ours, peer = measure_pair(generate, bare, rounds=5)
    yield Row("compute.provider_overhead", ours, "CPU-s", "the same tokens, no sampling", peer)
    logits = rows[0]
    ours, peer = measure_pair(
        lambda: [sample(logits, PARAMS, SEED, n) for n in range(64)], lambda: [logits.argmax() for _ in range(64)]
    )
    yield Row("compute.sample_64", ours, "CPU-s", "argmax", max(peer, 1e-6))
    engine.close()
    referee.close()
