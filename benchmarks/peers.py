"""Octavo and transformers, each in a process of its own that sleeps on its standard input while another one works.

The parent makes a `Peer` and asks it for workloads; `python -m benchmarks.peers` is what it starts. Both make the same
requests from the same seed, greedy, and give exactly the number of tokens that is asked for.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from octavo.cli.workload import Job, Shape, Span, generate

WORKLOADS = {
    "W1": Shape(1, Span(32, 32), Span(128, 128)),
    "W2": Shape(1, Span(1024, 1024), Span(1, 1)),
    "W3": Shape(64, Span(32, 256), Span(32, 128)),
    "W4": Shape(32, Span(544, 544), Span(32, 32), shared_prefix=512),
}
UNITS = {"W1": "tok/s", "W2": "prompt tok/s", "W3": "out tok/s", "W4": "out tok/s"}
VOCAB_SIZE = 49152  # SmolLM2's
FIRST_PLAIN_ID = 100
PEER_BATCH = 32  # rows of a batch of transformers

Serve = Callable[[Sequence[Job]], float]  # requests to seconds


class Peer:
    """One engine in a process of its own; `name` is "octavo" or "transformers"."""

    def __init__(self, name: str, dtype: str, threads: int) -> None:
        self.name, self.dtype = name, dtype
        words = [sys.executable, "-m", "benchmarks.peers", name, dtype, str(threads)]
        threads_of_torch = {"OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | threads_of_torch
        )
        self.settings = self._answer()["settings"]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}"

    def measure(self, workload: str, num_requests: int | None = None) -> float:
        """Tokens a second (see UNITS) of a workload, or of its first requests."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([workload, num_requests]) + "\n")
        self._process.stdin.flush()
        return float(self._answer()["tokens_per_second"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _answer(self) -> dict[str, object]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self} has ended with {self._process.wait()}; what it said stands above")
        return json.loads(line)


def jobs_of(workload: str) -> list[Job]:
    return generate(WORKLOADS[workload], range(FIRST_PLAIN_ID, VOCAB_SIZE))


def rate_of(workload: str, jobs: Sequence[Job], seconds: float) -> float:
    """W2 counts the prompt's tokens, up to the first new one; the others count new tokens, prompts' time included."""
    if workload == "W2":
        return sum(len(job.prompt) for job in jobs) / seconds
    return sum(job.max_tokens for job in jobs) / seconds


def open_octavo(dtype: str, threads: int) -> tuple[Serve, str]:
    from octavo import LLM, SamplingParams

    llm = LLM("smollm2-135m", dtype=dtype, threads=threads)

    def serve(jobs: Sequence[Job]) -> float:
        llm.reset_prefix_cache()
        params = [SamplingParams(max_tokens=job.max_tokens, temperature=0.0, ignore_eos=True) for job in jobs]
        begin = time.perf_counter()
        outputs = llm.generate([list(job.prompt) for job in jobs], params, progress=False)
        seconds = time.perf_counter() - begin
        assert [len(o.outputs[0].token_ids) for o in outputs] == [job.max_tokens for job in jobs]
        return seconds

    return serve, f"{llm.engine.resolved.describe()}, threads {threads}"


def open_transformers(dtype: str, threads: int) -> tuple[Serve, str]:
    """The same dequantised weights; sdpa attention, its default. Requests of like output length share a batch, padded
    on the left, so that little is computed in vain.
    """
    import torch

    from octavo import hub
    from tests.tiny_models import transformers_model_from_gguf

    torch.set_num_threads(threads)
    model = transformers_model_from_gguf(hub.resolve("smollm2-135m"))
    model = model.to({"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype])
    model.set_attn_implementation("sdpa")  # the tests' helper asks for eager
    model.generation_config.eos_token_id = None  # nothing ends early, and nothing has to look

    def run_batch(batch: Sequence[Job]) -> None:
        longest = max(len(job.prompt) for job in batch)
        ids = torch.tensor([[0] * (longest - len(job.prompt)) + list(job.prompt) for job in batch])
        mask = torch.tensor([[0] * (longest - len(job.prompt)) + [1] * len(job.prompt) for job in batch])
        length = max(job.max_tokens for job in batch)
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=mask, max_new_tokens=length, do_sample=False, pad_token_id=0)
        assert out.shape == (len(batch), longest + length)

    def serve(jobs: Sequence[Job]) -> float:
        ordered = sorted(jobs, key=lambda job: job.max_tokens)
        begin = time.perf_counter()
        for first in range(0, len(ordered), PEER_BATCH):
            run_batch(ordered[first : first + PEER_BATCH])
        return time.perf_counter() - begin

    return serve, f"generate, {dtype}, sdpa, padded batches of {PEER_BATCH} by output length, threads {threads}"


def main() -> None:
    """Answer a line of JSON for every line that comes."""
    name, dtype, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    serve, settings = {"octavo": open_octavo, "transformers": open_transformers}[name](dtype, int(threads))
    print(json.dumps({"settings": settings}), file=answers, flush=True)
    for line in sys.stdin:
        workload, num_requests = json.loads(line)
        jobs = jobs_of(workload)[:num_requests]
        rate = rate_of(workload, jobs, serve(jobs))
        print(json.dumps({"tokens_per_second": rate}), file=answers, flush=True)


if __name__ == "__main__":
    main()
