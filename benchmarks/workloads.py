"""W1 to W4: what is asked of every engine, and what a rate counts. Knows no engine.

W1: a prompt of 32 tokens, 128 generated. W2: one prompt of 1,024 tokens. W3: 64 requests at once, prompts of 32-256
tokens, 32-128 generated. W4: 32 requests at once, 512 common and 32 own tokens each, 32 generated.
"""

from collections.abc import Sequence

from octavo.tools.bench.workload import LengthRange, WorkloadSpec, generate_jobs

WORKLOADS = {
    "W1": WorkloadSpec(1, LengthRange(32, 32), LengthRange(128, 128)),
    "W2": WorkloadSpec(1, LengthRange(1024, 1024), LengthRange(1, 1)),
    "W3": WorkloadSpec(64, LengthRange(32, 256), LengthRange(32, 128)),
    "W4": WorkloadSpec(32, LengthRange(544, 544), LengthRange(32, 32), shared_prefix=512),
}
UNITS = {"W1": "tok/s", "W2": "prompt tok/s", "W3": "out tok/s", "W4": "out tok/s"}
VOCAB_SIZES = {"smollm2-135m": 49152, "qwen2-0.5b": 151936}
FIRST_PLAIN_ID = 100
STRIDE = 7919  # from one round's ids to the next one's

Request = tuple[list[int], int]  # prompt, number of new tokens


def requests_of(workload: str, model: str = "smollm2-135m", round: int = 0) -> list[Request]:
    """The same lengths in every round, and other tokens: an engine that keeps prefixes finds none of an earlier round.

    Tokens that requests of one round share stay shared.
    """
    count = VOCAB_SIZES[model] - FIRST_PLAIN_ID
    jobs = generate_jobs(WORKLOADS[workload], range(count))
    return [([FIRST_PLAIN_ID + (t + STRIDE * round) % count for t in job.prompt], job.max_tokens) for job in jobs]


def rate_of(workload: str, requests: Sequence[Request], seconds: float) -> float:
    """W2 counts the prompt's tokens, up to the first new one; the others count new tokens, prompts' time included."""
    if workload == "W2":
        return sum(len(prompt) for prompt, _ in requests) / seconds
    return sum(length for _, length in requests) / seconds
