"""llama.cpp through llama-cpp-python's low-level functions. Settings: {"model": GGUF file, "threads", "step_tokens": it
may be missing}.

All requests of a workload are sequences of one context. A prefix that all prompts share is computed once and given to
every sequence. Then come the prompts, as many tokens in a call as a batch takes, then steps of one token for every
sequence that has not ended. Threads that stay between calls are attached, as llama.cpp's own programs do.

Tried for each workload: flash attention or not; and for several requests one common cache, in which a shared prefix
is held once, or one part for each sequence, in which none of them looks at the others' cells.
"""

import ctypes
import sys

import llama_cpp.llama_cpp as lib
import numpy as np
from protocol import Engine, serve

BATCH = 2048  # tokens of one call, which llama.cpp computes in steps of 512 if nothing else is asked
PADDING = 256  # llama.cpp rounds the cells of a sequence up to it
MAX_THREADS = 512  # GGML_MAX_N_THREADS
GGML_LOG_LEVEL_ERROR = 4


class ThreadpoolParams(ctypes.Structure):
    """ggml_threadpool_params, of which llama-cpp-python knows nothing."""

    _fields_ = (
        ("cpumask", ctypes.c_bool * MAX_THREADS),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


def open_threadpool(threads):
    ggml = ctypes.CDLL("libggml-cpu.so.0")  # loaded already: found by its name
    base = ctypes.CDLL("libggml-base.so.0")
    base.ggml_threadpool_params_default.restype = ThreadpoolParams
    ggml.ggml_threadpool_new.restype = ctypes.c_void_p
    params = base.ggml_threadpool_params_default(ctypes.c_int(threads))
    return ggml.ggml_threadpool_new(ctypes.byref(params))


def attach_threadpool(context, pool):
    attach = ctypes.CDLL("libllama.so.0").llama_attach_threadpool
    attach.argtypes, attach.restype = [ctypes.c_void_p] * 3, None
    attach(context, pool, pool)


def shared_prefix(prompts):
    """The number of first tokens that all share; each keeps one of its own, which has to be computed."""
    if len(prompts) == 1:
        return 0
    length = min(len(prompt) for prompt in prompts) - 1
    rows = np.array([prompt[:length] for prompt in prompts])
    differs = (rows != rows[0]).any(axis=0)
    return int(differs.argmax()) if differs.any() else length


class Batch:
    """llama_batch with room for `size` tokens. `outputs`: the sequences whose logits were asked for, in order."""

    def __init__(self, size):
        self.size = size
        self.raw = lib.llama_batch_init(size, 0, 1)
        for i in range(size):
            self.raw.n_seq_id[i] = 1
        arrays = (self.raw.token, self.raw.pos, self.raw.logits)
        self.token, self.position, self.logits = (np.ctypeslib.as_array(array, (size,)) for array in arrays)
        self.sequence = [self.raw.seq_id[i] for i in range(size)]
        self.clear()

    def clear(self):
        self.raw.n_tokens, self.outputs = 0, []

    @property
    def room(self):
        return self.size - self.raw.n_tokens

    def add(self, sequence, ids, position, wants_logits):
        first, last = self.raw.n_tokens, self.raw.n_tokens + len(ids)
        self.token[first:last] = ids
        self.position[first:last] = range(position, position + len(ids))
        self.logits[first:last] = 0
        for i in range(first, last):
            self.sequence[i][0] = sequence
        if wants_logits:
            self.logits[last - 1] = 1
            self.outputs.append(sequence)
        self.raw.n_tokens = last


@lib.llama_log_callback
def log_errors(level, text, _):
    if level == GGML_LOG_LEVEL_ERROR:
        sys.stderr.write(text.decode(errors="replace"))


class LlamaCpp(Engine):
    def __init__(self, settings):
        lib.llama_log_set(log_errors, None)
        lib.llama_backend_init()
        self.threads = settings["threads"]
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(settings["model"].encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {settings['model']}")
        self.vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.pool = open_threadpool(self.threads)
        self.step_tokens = settings.get("step_tokens")
        self.batch = Batch(self.step_tokens or BATCH)
        self.context = self.made_for = None

    def about(self):
        return {"built with": lib.llama_print_system_info().decode()}

    def choices(self, workload):
        attention = ("plain attention", "flash attention")
        if workload in ("W1", "W2"):
            return attention
        return tuple(f"{a}, {cache}" for a in attention for cache in ("common cache", "cache in parts"))

    def prepare(self, choice, jobs):
        lengths = [len(ids) + length for ids, length in jobs]
        if self.made_for == (choice, lengths):
            return
        if self.context:
            lib.llama_free(self.context)
        in_parts = "in parts" in choice
        cells = max(lengths) if in_parts else sum(lengths)
        params = lib.llama_context_default_params()
        params.n_seq_max = len(jobs)
        params.n_ctx = -(-cells // PADDING) * PADDING * (len(jobs) if in_parts else 1)
        params.n_batch = self.batch.size
        if self.step_tokens:
            params.n_ubatch = self.step_tokens
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = int("flash" in choice)
        params.kv_unified = not in_parts
        params.n_outputs_max = len(jobs)
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp makes no context of {params.n_ctx} cells for {len(jobs)} sequences")
        attach_threadpool(self.context, self.pool)
        self.made_for = (choice, lengths)

    def run(self, jobs):
        lib.llama_memory_clear(lib.llama_get_memory(self.context), False)
        prompts = [ids for ids, _ in jobs]
        tokens = [[] for _ in jobs]
        shared = shared_prefix(prompts)
        if shared:
            self.compute_shared(prompts[0][:shared], len(jobs))
        self.compute_prompts(prompts, shared, tokens)
        while True:
            for sequence, (ids, length) in enumerate(jobs):
                done = len(tokens[sequence])
                if done < length:
                    self.batch.add(sequence, tokens[sequence][-1:], len(ids) + done - 1, True)
            if not self.batch.outputs:
                return tokens
            self.decode(tokens)

    def compute_shared(self, prefix, num_sequences):
        for first in range(0, len(prefix), self.batch.size):
            self.batch.add(0, prefix[first : first + self.batch.size], first, False)
            self.decode(())
        for sequence in range(1, num_sequences):
            lib.llama_memory_seq_cp(lib.llama_get_memory(self.context), 0, sequence, -1, -1)

    def compute_prompts(self, prompts, shared, tokens):
        """The longest first: parts of the cache are computed side by side, where they are of like length."""
        for sequence in sorted(range(len(prompts)), key=lambda index: -len(prompts[index])):
            prompt, done = prompts[sequence], shared
            while done < len(prompt):
                count = min(len(prompt) - done, self.batch.room)
                self.batch.add(sequence, prompt[done : done + count], done, done + count == len(prompt))
                done += count
                if not self.batch.room:
                    self.decode(tokens)
        if self.batch.raw.n_tokens:
            self.decode(tokens)

    def decode(self, tokens):
        """Compute the batch, and put the likeliest next token of every sequence that asked into `tokens`."""
        status = lib.llama_decode(self.context, self.batch.raw)
        if status:
            raise RuntimeError(f"llama_decode says {status}")
        if self.batch.outputs:
            rows = np.ctypeslib.as_array(lib.llama_get_logits(self.context), (len(self.batch.outputs), self.vocab_size))
            for sequence, token in zip(self.batch.outputs, rows.argmax(axis=1).tolist(), strict=True):
                tokens[sequence].append(token)
        self.batch.clear()


serve(LlamaCpp, "llama_cpp_python")
