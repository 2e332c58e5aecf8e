"""llama.cpp in this process, through the C API that the xllamacpp wheel's shared object exports.

Invariant: struct layouts are those of llama.cpp build 11549 and nothing else; another wheel is refused before a struct
crosses the boundary. Knows nothing of sampling or requests.

Why in process: a verifier needs logits at every position, and llama-server gives them at none. Declarations follow
include/llama.h of https://github.com/ggml-org/llama.cpp (MIT).
"""

import importlib.metadata
import importlib.util
import os
import platform
from collections import deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
from cffi import FFI
from numpy.typing import NDArray

from deaios.compute.engine import (
    EngineProfile,
    Part,
    Snapshot,
    Step,
    UnavailableEngine,
    plan_batches,
    validate_steps,
)
from deaios.compute.gguf_file import InvalidModelFile, ModelFile, TensorType, read_model_file

WHEEL = "xllamacpp"
WHEEL_VERSION = "2026.10.11549"
"""The wheel whose struct layouts are declared below."""
BATCH_TOKENS = 256
"""Most ids that the library computes at once. Larger batches were not faster on CPUs and cost memory for scores."""
CALL_TOKENS = BATCH_TOKENS + 64
"""Most ids in one call of the library, which cuts them into batches itself: a piece of a prompt beside 64 answers."""
OUTPUTS_MAX = 64
"""Most rows of logits in one call: 12 MiB for a vocabulary of 49,152."""
OTHER_BATCH_TOKENS = 64
"""Rows that the other kernels take at once."""
Kernels = Literal["served", "other"]
WAIT_SETTINGS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
"""How idle threads of the library wait, unless the operator set it. By default they spin for milliseconds at every
barrier: beside two busy processes on two cores, two threads then gave 5 tokens a second, 28 with these settings and 36
to 105 with one thread. Where engines share cores, one thread each is fastest."""
LOG_LINES_MAX = 8
"""Latest warnings of the library kept for error messages."""

_DECLARATIONS = """
typedef int32_t llama_token;
typedef int32_t llama_pos;
typedef int32_t llama_seq_id;
typedef bool (*llama_progress_callback)(float progress, void * user_data);
typedef void (*ggml_log_callback)(int level, const char * text, void * user_data);

struct llama_model_params {
    void * devices;
    const void * tensor_buft_overrides;
    int32_t n_gpu_layers;
    int split_mode;
    int load_mode;
    int lazy_mode;
    int32_t main_gpu;
    const float * tensor_split;
    llama_progress_callback progress_callback;
    void * progress_callback_user_data;
    const void * kv_overrides;
    bool vocab_only;
    bool check_tensors;
    bool use_extra_bufts;
    bool no_host;
    bool no_alloc;
    bool load_mtp;
};

struct llama_model_kv_override {
    int tag;
    char key[128];
    union {
        int64_t val_i64;
        double val_f64;
        bool val_bool;
        char val_str[128];
    };
};

struct llama_context_params {
    uint32_t n_ctx;
    uint32_t n_batch;
    uint32_t n_ubatch;
    uint32_t n_seq_max;
    uint32_t n_rs_seq;
    uint32_t n_outputs_max;
    uint32_t n_outputs_max_per_seq;
    int32_t n_threads;
    int32_t n_threads_batch;
    int ctx_type;
    int rope_scaling_type;
    int pooling_type;
    int attention_type;
    int flash_attn_type;
    float rope_freq_base;
    float rope_freq_scale;
    float yarn_ext_factor;
    float yarn_attn_factor;
    float yarn_beta_fast;
    float yarn_beta_slow;
    uint32_t yarn_orig_ctx;
    float defrag_thold;
    void * cb_eval;
    void * cb_eval_user_data;
    int type_k;
    int type_v;
    size_t moe_cache_size;
    void * abort_callback;
    void * abort_callback_data;
    bool embeddings;
    bool offload_kqv;
    bool no_perf;
    bool op_offload;
    bool swa_full;
    bool kv_unified;
    void * samplers;
    size_t n_samplers;
    void * ctx_other;
};

typedef struct llama_batch {
    int32_t n_tokens;
    llama_token * token;
    float * embd;
    llama_pos * pos;
    int32_t * n_seq_id;
    llama_seq_id ** seq_id;
    int8_t * logits;
} llama_batch;

void llama_backend_init(void);
void llama_log_set(ggml_log_callback log_callback, void * user_data);
struct llama_model_params llama_model_default_params(void);
struct llama_context_params llama_context_default_params(void);
void * llama_model_load_from_file(const char * path_model, struct llama_model_params params);
void llama_model_free(void * model);
void * llama_init_from_model(void * model, struct llama_context_params params);
void llama_free(void * ctx);
const void * llama_model_get_vocab(const void * model);
int32_t llama_vocab_n_tokens(const void * vocab);
int32_t llama_model_n_ctx_train(const void * model);
void * llama_get_memory(const void * ctx);
bool llama_memory_seq_rm(void * mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1);
llama_pos llama_memory_seq_pos_min(void * mem, llama_seq_id seq_id);
size_t llama_state_seq_get_size(void * ctx, llama_seq_id seq_id);
size_t llama_state_seq_get_data(void * ctx, uint8_t * dst, size_t size, llama_seq_id seq_id);
size_t llama_state_seq_set_data(void * ctx, const uint8_t * src, size_t size, llama_seq_id dest_seq_id);
void llama_memory_clear(void * mem, bool data);
uint32_t llama_n_ctx_seq(const void * ctx);
struct llama_batch llama_batch_init(int32_t n_tokens, int32_t embd, int32_t n_seq_max);
void llama_batch_free(struct llama_batch batch);
int32_t llama_decode(void * ctx, struct llama_batch batch);
float * llama_get_logits_ith(void * ctx, int32_t i);
void llama_set_embeddings(void * ctx, bool embeddings);
float * llama_get_embeddings_ith(void * ctx, int32_t i);
int32_t llama_model_n_embd(const void * model);
"""

_GGML_F32 = 0
_GGML_F16 = 1
_CONTEXT_DEFAULTS: Mapping[str, int | float] = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "flash_attn_type": -1,
    "rope_freq_base": 0.0,
    "yarn_ext_factor": -1.0,
    "type_k": _GGML_F16,
    "type_v": _GGML_F16,
    "offload_kqv": True,
    "kv_unified": False,
    "n_samplers": 0,
}
_MODEL_DEFAULTS: Mapping[str, int] = {"main_gpu": 0, "vocab_only": False, "use_extra_bufts": True}
_LOAD_BY_MMAP = 1
_OVERRIDE_INT, _OVERRIDE_TEXT = 0, 3
"""Kinds of values that stand in for a file's (enum llama_model_kv_override_type)."""
_TOKENS_KEY = "tokenizer.ggml.tokens"
_FLASH_ATTENTION_OFF = 0
_FLASH_ATTENTION_ON = 1
_LOG_LEVEL_WARN = 3
_HELD_BY_C: list[object] = []
"""Callbacks that the library calls until the process ends; freeing one would crash the next engine that logs."""


class _Library:
    """The loaded shared object; one per process, never unloaded because the library keeps global state."""

    _loaded: "_Library | None" = None

    def __init__(self, path: Path, build: str) -> None:
        self.ffi = FFI()
        self.ffi.cdef(_DECLARATIONS)
        for name, value in WAIT_SETTINGS.items():
            os.environ.setdefault(name, value)  # libgomp reads them once, when it is loaded
        try:
            # Any: cffi resolves C functions at run time.
            self.api: Any = self.ffi.dlopen(str(path))
        except OSError as error:
            raise UnavailableEngine(_explain_load_failure(str(error))) from error
        self.build = build
        self.log: deque[str] = deque(maxlen=LOG_LINES_MAX)
        self._validate_layouts()
        log_callback = self.ffi.callback("void(int, const char *, void *)", self._keep_log)
        _HELD_BY_C.append(log_callback)
        self.api.llama_log_set(log_callback, self.ffi.NULL)
        self.api.llama_backend_init()

    @classmethod
    def load(cls) -> "_Library":
        """The library, loaded on first use.

        Raises:
            UnavailableEngine: wheel missing, another version, or a system library missing; says how to fix it.
        """
        if cls._loaded is None:
            spec = importlib.util.find_spec(WHEEL)
            fix = f"install it with: pip install {WHEEL}=={WHEEL_VERSION}; or choose the numpy engine"
            if spec is None or spec.origin is None:
                raise UnavailableEngine(f"the llama engine needs the {WHEEL} wheel, which is not installed; {fix}")
            version = importlib.metadata.version(WHEEL)
            if version != WHEEL_VERSION:
                raise UnavailableEngine(f"{WHEEL} {version} found, the struct layouts are those of another; {fix}")
            found = sorted(Path(spec.origin).parent.glob("xllamacpp*.so"))
            if not found:
                raise UnavailableEngine(f"the {WHEEL} wheel has no loadable shared object on this platform; {fix}")
            cls._loaded = cls(found[0], f"{WHEEL} {version}")
        return cls._loaded

    def _keep_log(self, level: int, text: Any, _user_data: Any) -> None:  # Any: cffi pointers
        if level >= _LOG_LEVEL_WARN:
            self.log.append(self.ffi.string(text).decode("utf-8", "replace").strip())

    def _validate_layouts(self) -> None:
        """Defaults far apart in each struct must read back as the header says, or the layout is another."""
        context = self.api.llama_context_default_params()
        model = self.api.llama_model_default_params()
        # Any: cffi structs have no static types
        seen: list[Any] = [getattr(context, name) for name in _CONTEXT_DEFAULTS]
        seen += [getattr(model, name) for name in _MODEL_DEFAULTS]
        expected = [*_CONTEXT_DEFAULTS.values(), *_MODEL_DEFAULTS.values()]
        if seen != expected:
            raise UnavailableEngine(
                f"{self.build} has other struct layouts: defaults read {seen}, {expected} expected; "
                f"install {WHEEL}=={WHEEL_VERSION} or choose the numpy engine"
            )

    def explain(self) -> str:
        """The library's latest warnings as one text."""
        return " | ".join(self.log) or "it said nothing"


def _explain_load_failure(reason: str) -> str:
    if "libgomp" in reason:
        return (
            "llama.cpp needs the system library libgomp.so.1, which is missing; install it with "
            "`apt-get install libgomp1` (Debian, Ubuntu) or `dnf install libgomp` (Fedora), or choose the numpy engine"
        )
    return f"llama.cpp's shared object cannot be loaded: {reason}; choose the numpy engine on this platform"


class LlamaEngine:
    """A GGUF model run by llama.cpp on CPU: mapped weights, F16 cache, flash attention off.

    Where memory is reserved for whole contexts of all sequences, each has cells of its own ("slots"), and attention
    looks at nobody else's. With a smaller `tokens_max` all share one pool of cells, and attention looks at all of them:
    less memory, and at 64 sequences three times the work. One sequence alone gives the same bits either way.

    The library computes slots together only where their numbers follow one another, so slots are kept without holes:
    when an answer ends, the last sequence is copied into its slot, bit for bit.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        context_tokens: int = 2048,
        sequences_max: int = 1,
        tokens_max: int | None = None,
        kernels: Kernels = "served",
    ) -> None:
        """Load a model.

        Args:
            path: GGUF file.
            threads: threads for the arithmetic; numbers do not depend on it.
            context_tokens: most ids of one sequence.
            sequences_max: sequences held at once.
            tokens_max: most ids of all sequences together; less than the product saves memory and costs time.
            kernels: `other` computes the same by other kernels, for a second honest opinion: weights as they lie in the
                file, fused attention, an F32 cache, smaller batches.

        Raises:
            InvalidModelFile: not a model that llama.cpp takes.
            UnavailableEngine: the library cannot be loaded, or memory is short.
        """
        model = read_model_file(path, wants_vocabulary=False)
        library = _Library.load()
        self._library = library
        self.context_tokens = context_tokens
        self.sequences_max = sequences_max
        self.tokens_max = context_tokens * sequences_max if tokens_max is None else tokens_max
        self._is_pool = self.tokens_max < context_tokens * sequences_max
        self._held = [0] * sequences_max
        self._slots = list(range(sequences_max)) if self._is_pool else [-1] * sequences_max
        self._kernels = kernels
        self._shows_hidden = False
        self._model: Any = self._load_model(model)
        self._context: Any = self._open_context(threads)
        self._batch: Any = library.api.llama_batch_init(CALL_TOKENS, 0, 1)
        self._memory: Any = library.api.llama_get_memory(self._context)
        self.vocabulary_size: int = library.api.llama_vocab_n_tokens(library.api.llama_model_get_vocab(self._model))
        self.width: int = library.api.llama_model_n_embd(self._model)
        encodings = sorted({tensor.type.name for tensor in model.tensors.values() if len(tensor.shape) > 1})
        floats = {TensorType.F32.name, TensorType.F16.name, TensorType.BF16.name}
        self.profile = EngineProfile(
            name="llama",
            build=library.build,
            noise_class="F" if set(encodings) <= floats else "Q",
            details={
                "batch": BATCH_TOKENS if kernels == "served" else OTHER_BATCH_TOKENS,
                "cache": "f16" if kernels == "served" else "f32",
                "flashAttention": kernels != "served",
                "machine": platform.machine(),
                "weights": "+".join(encodings),
                **({} if kernels == "served" else {"extraBuffers": False}),
            },
        )

    def _load_model(self, file: ModelFile) -> Any:  # Any: cffi pointer
        api, path = self._library.api, file.path
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0
        params.load_mode = _LOAD_BY_MMAP
        if self._kernels != "served":
            params.use_extra_bufts = False
        overrides = self._build_overrides(file)  # the library reads it while it loads
        params.kv_overrides = self._library.ffi.cast("void *", overrides)
        self._library.log.clear()
        model = api.llama_model_load_from_file(str(path).encode(), params)
        if model == self._library.ffi.NULL:
            raise InvalidModelFile(f"llama.cpp refuses {path.name}: {self._library.explain()}")
        return model

    def _build_overrides(self, file: ModelFile) -> Any:  # Any: cffi pointer
        """Load no vocabulary: ids go in and scores of ids come out here, and building one is half of the loading.

        The library then has to be told how many ids there are, which it compares with the tensors as ever.
        """
        overrides = self._library.ffi.new("struct llama_model_kv_override[3]")
        if _TOKENS_KEY in file.metadata:
            values: tuple[tuple[str, int, str, bytes | int], ...] = (
                ("tokenizer.ggml.model", _OVERRIDE_TEXT, "val_str", b"no_vocab"),
                (
                    f"{file.get_text('general.architecture')}.vocab_size",
                    _OVERRIDE_INT,
                    "val_i64",
                    len(file.get_texts(_TOKENS_KEY)),
                ),
            )
            for override, (key, tag, field, value) in zip(overrides, values, strict=False):
                override.tag, override.key = tag, key.encode()
                setattr(override, field, value)
        return overrides

    def _open_context(self, threads: int) -> Any:  # Any: cffi pointer
        api = self._library.api
        params = api.llama_context_default_params()
        params.n_ctx = self.tokens_max
        params.n_batch, params.n_ubatch = CALL_TOKENS, BATCH_TOKENS
        params.n_seq_max = self.sequences_max
        params.n_outputs_max = OUTPUTS_MAX
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = _FLASH_ATTENTION_OFF
        params.type_k = params.type_v = _GGML_F16
        if self._kernels != "served":
            params.n_ubatch = OTHER_BATCH_TOKENS
            params.flash_attn_type = _FLASH_ATTENTION_ON
            params.type_k = params.type_v = _GGML_F32
        params.kv_unified = self._is_pool
        params.no_perf = True
        self._library.log.clear()
        context = api.llama_init_from_model(self._model, params)
        if context == self._library.ffi.NULL:
            api.llama_model_free(self._model)
            raise UnavailableEngine(
                f"llama.cpp cannot open a context of {self.tokens_max} tokens: {self._library.explain()}"
            )
        return context

    def decode(self, steps: Sequence[Step]) -> list[NDArray[np.float32]]:
        """Run steps of different sequences together; see `Engine.decode`."""
        return [logits for logits, _ in self._decode(steps, CALL_TOKENS, with_hidden=False)]

    def decode_hidden(self, steps: Sequence[Step]) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Run steps with their hidden states; see `HiddenEngine.decode_hidden`.

        The library then makes logits of all ids of a call, and aborts the process where these are more than its bound.
        """
        return self._decode(steps, OUTPUTS_MAX, with_hidden=True)

    def _show_hidden(self, shows: bool) -> None:
        """Tell the library whether hidden states are wanted; only a change is told, because it costs a new graph."""
        if self._context is None:
            raise UnavailableEngine("the engine is closed")
        if shows != self._shows_hidden:
            self._library.api.llama_set_embeddings(self._context, shows)
            self._shows_hidden = shows

    def _decode(
        self, steps: Sequence[Step], call_tokens: int, *, with_hidden: bool
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        self._show_hidden(with_hidden)
        validate_steps(self, self._held, steps)
        self._assign_slots(steps)
        width = self.width if with_hidden else 0
        rows = [np.empty((step.outputs, self.vocabulary_size), np.float32) for step in steps]
        states = [np.empty((step.outputs, width), np.float32) for step in steps]
        written = [0] * len(steps)
        order = sorted(range(len(steps)), key=lambda index: self._slots[steps[index].sequence])
        part_max = min(BATCH_TOKENS, call_tokens)
        for parts in plan_batches(steps, call_tokens, OUTPUTS_MAX, part_max=part_max, order=order):
            wanted = self._fill_batch(steps, parts)
            self._run_batch()
            for place, index in wanted:
                rows[index][written[index]] = self._read_logits(place)
                if with_hidden:
                    states[index][written[index]] = self._read_hidden(place)
                written[index] += 1
        for step in steps:
            self._held[step.sequence] += len(step.ids)
        return list(zip(rows, states, strict=True))

    def _run_batch(self) -> None:
        code = self._library.api.llama_decode(self._context, self._batch)
        if code != 0:
            self._forget_all()
            raise UnavailableEngine(f"llama.cpp failed with code {code}: {self._library.explain()}")

    def hidden(self, step: Step) -> NDArray[np.float32]:
        """Run one step and give the hidden states of all its ids; see `EmbeddingEngine.hidden`.

        The library pools within one batch only, so it is told not to pool.
        """
        self._show_hidden(True)
        whole = replace(step, outputs=len(step.ids))
        validate_steps(self, self._held, [whole])
        self._assign_slots([whole])
        rows = np.empty((len(step.ids), self.width), np.float32)
        done = 0
        for parts in plan_batches([whole], CALL_TOKENS, OUTPUTS_MAX):
            wanted = self._fill_batch([whole], parts)
            self._run_batch()
            for place, _ in wanted:
                rows[done] = self._read_hidden(place)
                done += 1
        self._held[step.sequence] += len(step.ids)
        return rows

    def _assign_slots(self, steps: Sequence[Step]) -> None:
        """Give new sequences the lowest free slots, then fill holes with the sequences that lie highest."""
        if self._is_pool:
            return
        taken = {slot: sequence for sequence, slot in enumerate(self._slots) if slot >= 0}
        for step in steps:
            if self._slots[step.sequence] < 0:
                self._slots[step.sequence] = slot = _lowest_free(taken)
                taken[slot] = step.sequence
        while (hole := _lowest_free(taken)) < (last := max(taken)):
            self._move(taken[last], hole)
            taken[hole] = taken.pop(last)

    def _move(self, sequence: int, slot: int) -> None:
        """Bring what a sequence holds into another, empty slot; a sequence that holds nothing yet just changes it."""
        if self._held[sequence]:
            snapshot = self.save(sequence)
            if not self._load(slot, snapshot):
                self._forget_all()
                raise UnavailableEngine(f"llama.cpp cannot move a sequence: {self._library.explain()}")
            self._library.api.llama_memory_seq_rm(self._memory, self._slots[sequence], -1, -1)
        self._slots[sequence] = slot

    def _fill_batch(self, steps: Sequence[Step], parts: Sequence[Part]) -> list[tuple[int, int]]:
        """Put parts into the batch; returns (place in the batch, step) for each row of logits wanted."""
        batch = self._batch
        wanted = []
        place = 0
        for part in parts:
            step = steps[part.index]
            for offset in range(part.first, part.last):
                batch.token[place] = step.ids[offset]
                batch.pos[place] = step.position + offset
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = self._slots[step.sequence]
                batch.logits[place] = offset >= part.last - part.outputs
                if batch.logits[place]:
                    wanted.append((place, part.index))
                place += 1
        batch.n_tokens = place
        return wanted

    def _read_logits(self, place: int) -> NDArray[np.float32]:
        pointer = self._library.api.llama_get_logits_ith(self._context, place)
        if pointer == self._library.ffi.NULL:
            raise UnavailableEngine(f"llama.cpp gives no logits for place {place} of the batch")
        return np.frombuffer(self._library.ffi.buffer(pointer, self.vocabulary_size * 4), np.float32)

    def _read_hidden(self, place: int) -> NDArray[np.float32]:
        pointer = self._library.api.llama_get_embeddings_ith(self._context, place)
        if pointer == self._library.ffi.NULL:
            raise UnavailableEngine(f"llama.cpp gives no hidden state for place {place} of the batch")
        return np.frombuffer(self._library.ffi.buffer(pointer, self.width * 4), np.float32)

    def forget(self, sequence: int) -> None:
        """Empty a sequence."""
        if self._context is None or self._slots[sequence] < 0:
            return
        self._library.api.llama_memory_seq_rm(self._memory, self._slots[sequence], -1, -1)
        self._held[sequence] = 0
        if not self._is_pool:
            self._slots[sequence] = -1
        if not any(self._held):
            self._forget_all()  # an idle engine is as good as new, which bit-exact replay relies on

    def save(self, sequence: int) -> Snapshot:
        """Copy what a sequence holds; see `SavingEngine.save`. Takes some 30 microseconds a token."""
        api, slot = self._library.api, self._slots[sequence]
        size = api.llama_state_seq_get_size(self._context, slot)
        state = np.empty(size, np.uint8)
        written = api.llama_state_seq_get_data(self._context, self._library.ffi.from_buffer(state), size, slot)
        if written != size:
            self._forget_all()
            raise UnavailableEngine(f"llama.cpp saved {written} of {size} bytes: {self._library.explain()}")
        return Snapshot(self._held[sequence], size, state)

    def restore(self, sequence: int, snapshot: Snapshot, tokens: int) -> bool:
        """Let an empty sequence hold the start of a snapshot; see `SavingEngine.restore`."""
        assert self._held[sequence] == 0
        assert 0 < tokens <= snapshot.tokens
        api = self._library.api
        if self._context is None or sum(self._held) + snapshot.tokens > self.tokens_max:
            return False
        if not self._is_pool and self._slots[sequence] < 0:
            self._slots[sequence] = _lowest_free({slot for slot in self._slots if slot >= 0})
        slot = self._slots[sequence]
        is_loaded = self._load(slot, snapshot)
        is_cut = is_loaded and (tokens == snapshot.tokens or api.llama_memory_seq_rm(self._memory, slot, tokens, -1))
        # A model with a sliding window keeps the end of a long sequence only: nothing earlier can be continued.
        if not is_cut or api.llama_memory_seq_pos_min(self._memory, slot) != 0:
            self.forget(sequence)
            return False
        self._held[sequence] = tokens
        return True

    def _load(self, slot: int, snapshot: Snapshot) -> bool:
        state = snapshot.state
        assert isinstance(state, np.ndarray)
        ffi = self._library.ffi
        read = self._library.api.llama_state_seq_set_data(
            self._context, ffi.from_buffer(state), snapshot.size_bytes, slot
        )
        return bool(read == snapshot.size_bytes)

    def _forget_all(self) -> None:
        self._library.api.llama_memory_clear(self._memory, False)
        self._held = [0] * self.sequences_max
        if not self._is_pool:
            self._slots = [-1] * self.sequences_max

    def close(self) -> None:
        """Free the context and the model."""
        if self._context is not None:
            self._library.api.llama_batch_free(self._batch)
            self._library.api.llama_free(self._context)
            self._library.api.llama_model_free(self._model)
            self._context = self._model = self._batch = self._memory = None


def _lowest_free(taken: Container[int]) -> int:
    return next(slot for slot in count() if slot not in taken)
