"""W3: 64 requests at once (prompts 32-256 tokens, outputs 32-128, EOS ignored) on SmolLM2-135M, beside transformers.

Octavo gets them all at once. `transformers.generate` gets them in padded batches of 32, sorted by output length so
that it wastes as little as it can; only the tokens that were asked for count. Both hold the same dequantised weights.
Prints JSON: tokens/s of each round, medians, and the ratio.
"""

import argparse
import json
import random
import statistics
import sys
import time

import torch
from transformers import LlamaForCausalLM

from benchmarks.machine import describe, exclusive
from octavo import LLM, SamplingParams, hub
from tests.tiny_models import transformers_model_from_gguf

BATCH = 32


def workload(count: int, vocab_size: int) -> list[tuple[list[int], int]]:
    """(prompt ids, number of tokens to generate) of each request; seeded."""
    rng = random.Random(0)
    return [
        ([rng.randrange(100, vocab_size) for _ in range(rng.randint(32, 256))], rng.randint(32, 128))
        for _ in range(count)
    ]


def run_octavo(llm: LLM, work: list[tuple[list[int], int]]) -> float:
    """Output tokens per second."""
    llm.reset_prefix_cache()
    params = [SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True) for _, length in work]
    start = time.perf_counter()
    outputs = llm.generate([prompt for prompt, _ in work], params, progress=False)
    seconds = time.perf_counter() - start
    assert [len(o.outputs[0].token_ids) for o in outputs] == [length for _, length in work]
    return sum(length for _, length in work) / seconds


def run_transformers(model: LlamaForCausalLM, work: list[tuple[list[int], int]]) -> float:
    """Output tokens per second that were asked for."""
    ordered = sorted(work, key=lambda item: item[1])
    start = time.perf_counter()
    for first in range(0, len(ordered), BATCH):
        batch = ordered[first : first + BATCH]
        longest = max(len(prompt) for prompt, _ in batch)
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt, _ in batch])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in batch])
        length = max(length for _, length in batch)
        model.generate(
            ids, attention_mask=mask, max_new_tokens=length, min_new_tokens=length, do_sample=False, pad_token_id=0
        )
    return sum(length for _, length in work) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    path = hub.resolve("smollm2-135m")
    with exclusive(), torch.inference_mode():
        peer = transformers_model_from_gguf(path).to({"bfloat16": torch.bfloat16, "float32": torch.float32}[args.dtype])
        peer.set_attn_implementation("sdpa")  # the peer's own default; the tests' helper asks for eager
        llm = LLM(dtype=args.dtype, threads=args.threads)
        work = workload(args.requests, llm.engine.resolved.arch.vocab_size)
        small = work[:2]
        run_octavo(llm, small), run_transformers(peer, small)  # warm up
        ours, theirs = [], []
        for _ in range(args.rounds):
            ours.append(run_octavo(llm, work))
            theirs.append(run_transformers(peer, work))
            print(f"octavo {ours[-1]:.1f} tok/s, transformers {theirs[-1]:.1f} tok/s", file=sys.stderr)
    result = {
        "workload": f"W3, {args.requests} requests, {args.dtype}, {args.threads} threads, {args.rounds} rounds",
        "octavo_tokens_per_second": [round(value, 1) for value in ours],
        "transformers_tokens_per_second": [round(value, 1) for value in theirs],
        "median_ratio": round(statistics.median(o / t for o, t in zip(ours, theirs, strict=True)), 2),
        "seconds_by_phase": llm.get_stats()["seconds"],
        "settings": llm.engine.resolved.describe(),
        "machine": describe("octavo", "torch", "transformers"),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
