"""DeAIOS's seeded sampling inside vLLM: `vllm serve MODEL --logits-processors deaios_vllm:SeededSampling`.

Requests that carry `vllm_xargs` with a `deaios_seed` get the tokens that docs/spec/sampling.md fixes, so that anybody
with the weights can check them; all others are left alone. Needs torch and nothing of the `deaios` package.
"""

from deaios_vllm.processor import SeededSampling

__all__ = ["SeededSampling"]
