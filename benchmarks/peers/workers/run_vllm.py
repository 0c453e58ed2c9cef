"""vLLM on a CPU. Settings: {"model": directory, "threads", "dtype", "binding": VLLM_CPU_OMP_THREADS_BIND,
"step_tokens": it may be missing}.

One process, prefix caching on and emptied before each run. tcmalloc and the OpenMP of vLLM's own requirements are
loaded before everything else, where they are installed: the worker starts itself again for that.
"""

import json
import os
import sys
from pathlib import Path

from protocol import Engine, serve

CACHE = 2  # GiB
STEP_TOKENS = 2048  # where no other number is asked for
PRELOADED = ("libtcmalloc_minimal.so.4", "libiomp5.so")
FOLDERS = (Path(sys.prefix) / "lib", *map(Path, ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")))
MARK = "OCTAVO_PEER_PRELOADED"


def restart_with_libraries(settings):
    """Not more than once; what vLLM reads from the environment is set at the same time."""
    if MARK in os.environ:
        return
    found = [next((str(f / name) for f in FOLDERS if (f / name).exists()), None) for name in PRELOADED]
    os.environ |= {
        MARK: "1",
        "LD_PRELOAD": ":".join(filter(None, found)),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(CACHE),
        "VLLM_CPU_OMP_THREADS_BIND": settings["binding"],
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    os.execv(sys.executable, [sys.executable, *sys.argv])


class Vllm(Engine):
    def __init__(self, settings):
        import vllm

        self.llm = vllm.LLM(
            settings["model"],
            dtype=settings["dtype"],
            skip_tokenizer_init=True,
            max_model_len=2048,
            max_num_seqs=64,
            max_num_batched_tokens=settings.get("step_tokens", STEP_TOKENS),
            enable_prefix_caching=True,
        )
        self.params = vllm.SamplingParams

    def run(self, jobs):
        self.llm.reset_prefix_cache()
        params = [self.params(max_tokens=n, temperature=0.0, ignore_eos=True, detokenize=False) for _, n in jobs]
        prompts = [{"prompt_token_ids": ids} for ids, _ in jobs]
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


restart_with_libraries(json.loads(sys.argv[1]))
serve(Vllm, "vllm-cpu", "torch")
