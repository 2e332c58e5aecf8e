"""The logits processor for vLLM, for both of its model runners.

It computes the pick itself and leaves nothing else possible in the row, so that whatever vLLM does after it (greedy
decoding, rounding, filters) gives that token. Both interfaces are one class: an entry point names one class for all,
and each runner accepts only subclasses of its own base.

Sources: vllm/v1/sample/logits_processor/interface.py (V1 runner: `BatchUpdate`, `update_state`, `apply(logits)`);
vllm/v1/worker/gpu/sample/logits_processor/interface.py (V2 runner, vLLM 0.31 and later: `add_request`,
`apply(logits, ctx)`).
"""

import importlib
from typing import Any

import torch

from deaios_vllm.seeded import TOP_P_OFF, Draw, pick_tokens

SEED, TEMPERATURE, TOP_K, TOP_P = "deaios_seed", "deaios_temperature_milli", "deaios_top_k", "deaios_top_p_milli"
SEED_BYTES = 16
TEMPERATURE_MILLI_MAX = 2000
TOP_K_MAX = 1 << 20
_NEUTRAL: dict[str, object] = {
    "presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1, "min_p": 0, "min_tokens": 0,
    "logit_bias": None, "allowed_token_ids": None, "bad_words": [],
}  # fmt: skip
"""Parameters of vLLM that would change the logits before the pick, and what turns them off."""
_INTERFACES = ("vllm.v1.worker.gpu.sample.logits_processor.interface", "vllm.v1.sample.logits_processor.interface")


def read_draw(params: Any) -> Draw | None:  # Any: vLLM's SamplingParams
    """How a request draws; None when it is not for us.

    Raises:
        ValueError: it is for us, and something in it is wrong; the message names the argument.
    """
    arguments = params.extra_args or {}
    if SEED not in arguments:
        strange = [name for name in (TEMPERATURE, TOP_K, TOP_P) if name in arguments]
        if strange:
            raise ValueError(f"{strange[0]} is given without {SEED}")
        return None
    seed = arguments[SEED]
    try:
        data = bytes.fromhex(seed) if isinstance(seed, str) else b""
    except ValueError:
        data = b""
    if len(data) != SEED_BYTES:
        raise ValueError(f"{SEED} is not {SEED_BYTES} bytes in hex")
    for name, off in _NEUTRAL.items():
        value = getattr(params, name, off)
        if value != off and (value or off):
            raise ValueError(f"{SEED} fixes the token; {name} would change it and must be left out")
    return Draw(
        key=(int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")),
        temperature_milli=_read_int(arguments, TEMPERATURE, 0, TEMPERATURE_MILLI_MAX),
        top_k=_read_int(arguments, TOP_K, 0, TOP_K_MAX),
        top_p_milli=_read_int(arguments, TOP_P, 1, TOP_P_OFF),
    )


def _read_int(arguments: dict[str, Any], name: str, lowest: int, highest: int) -> int:  # Any: JSON of a request
    value = arguments.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise ValueError(f"{name} is {value!r:.40}, an integer of {lowest} to {highest} is wanted beside {SEED}")
    return value


def _read_admitted(params: Any) -> Draw | None:  # Any: vLLM's SamplingParams
    """As `read_draw`, where an error would end the whole engine: what was not validated is left alone.

    vLLM validates at its door; requests that come another way are not ours, and their tokens would fail every check.
    """
    try:
        return read_draw(params)
    except ValueError:
        return None


class _Running:
    """One request of the V1 runner; `output_ids` is vLLM's own list, which grows."""

    def __init__(self, draw: Draw, prompt_count: int, output_ids: list[int]) -> None:
        self.draw = draw
        self.prompt_count = prompt_count
        self.output_ids = output_ids

    @property
    def position(self) -> int:
        """Absolute position of the token that is drawn next."""
        return self.prompt_count + len(self.output_ids)


class _Seeded:
    """Both interfaces: V1 calls `update_state` and `apply(logits)`, V2 `add_request` and `apply(logits, ctx)`."""

    def __init__(
        self, vllm_config: Any, device_or_state: Any, is_pin_memory: bool | None = None
    ) -> None:  # Any: vLLM's
        del vllm_config, device_or_state, is_pin_memory
        self._running: dict[int, _Running] = {}
        self._draws: dict[int, Draw] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:  # Any: vLLM's SamplingParams
        """Refuse a request at vLLM's door.

        Raises:
            ValueError: names the argument.
        """
        read_draw(sampling_params)

    def is_argmax_invariant(self) -> bool:
        """No: greedy decoding is just where it decides."""
        return False

    def update_state(self, batch_update: Any) -> None:  # Any: vLLM's BatchUpdate
        """V1: follow requests through the rows of the batch; removed, then added, then moved, as documented."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._running.pop(row, None)
        for row, params, prompt_ids, output_ids in batch_update.added:
            self._running.pop(row, None)
            draw = None if prompt_ids is None else _read_admitted(params)
            if draw is not None:
                self._running[row] = _Running(draw, len(prompt_ids), output_ids)
        for source, target, direction in batch_update.moved:
            moved, replaced = self._running.pop(source, None), self._running.pop(target, None)
            if moved is not None:
                self._running[target] = moved
            if replaced is not None and direction.name == "SWAP":
                self._running[source] = replaced

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:  # Any: vLLM's SamplingParams
        """V2: a request takes a slot; whatever was in it is over. Says whether its rows are ours."""
        self._draws.pop(req_idx, None)
        draw = _read_admitted(sampling_params)
        if draw is not None:
            self._draws[req_idx] = draw
        return draw is not None

    def apply_staged_writes(self) -> None:
        """V2: nothing is staged."""

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:  # Any: vLLM's LogitsContext
        """Leave one token possible in every row of ours, in place.

        Args:
            logits: `(rows, vocabulary)` float32.
            ctx: of the V2 runner: which slot a row belongs to, and the position of the id before it.
        """
        if ctx is None:
            found = [(row, running.draw) for row, running in sorted(self._running.items()) if row < logits.shape[0]]
            places = [self._running[row].position for row, _ in found]
            positions = torch.tensor(places, dtype=torch.int64, device=logits.device)
        else:
            if not self._draws:
                return logits
            # One row per request unless tokens are drafted; only then must the mapping come from the device.
            is_plain = logits.shape[0] == len(ctx.idx_mapping_np)
            slots = ctx.idx_mapping_np.tolist() if is_plain else ctx.expanded_idx_mapping.tolist()
            found = [(row, self._draws[slot]) for row, slot in enumerate(slots) if slot in self._draws]
            chosen = torch.tensor([row for row, _ in found], dtype=torch.int64, device=logits.device)
            positions = ctx.pos[chosen].to(torch.int64) + 1
        if found:
            _force(logits, [row for row, _ in found], [draw for _, draw in found], positions)
        return logits


def _force(logits: torch.Tensor, rows: list[int], draws: list[Draw], positions: torch.Tensor) -> None:
    places = torch.tensor(rows, dtype=torch.int64, device=logits.device)
    chosen = logits[places].to(torch.float32)
    picks = pick_tokens(chosen, draws, positions)
    forced = torch.full_like(chosen, -torch.inf).scatter_(1, picks[:, None], 0.0)
    # A row with a NaN, or with nothing left, has no pick: it stays as it is and shows that the model is broken.
    sound = (~chosen.isnan()).all(1) & (chosen > -torch.inf).any(1)
    logits[places] = torch.where(sound[:, None], forced, chosen).to(logits.dtype)


def _find_bases() -> tuple[type, ...]:
    """The interfaces of the vLLM that is installed; none where there is none."""
    bases = []
    for name in _INTERFACES:
        try:
            bases.append(importlib.import_module(name).LogitsProcessor)
        except ModuleNotFoundError as error:
            if not name.startswith(str(error.name)):
                raise
    return tuple(bases)


SeededSampling = type("SeededSampling", (_Seeded, *_find_bases()), {"__doc__": _Seeded.__doc__})
