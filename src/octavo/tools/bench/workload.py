"""What a benchmark asks of an engine: requests with their lengths and arrival times, generated from a seed or from a
file.

Knows token ids and numbers; knows no engine and takes no times.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octavo.config import MAX_COUNT
from octavo.errors import RequestError, shown

_FIELDS = ("prompt", "prompt_token_ids", "max_tokens", "arrival")


@dataclass(frozen=True, slots=True)
class Job:
    """One request: a prompt (text or token ids), exactly `max_tokens` tokens after it, `arrival` seconds after the
    start.
    """

    prompt: str | tuple[int, ...]
    max_tokens: int
    arrival: float = 0.0


@dataclass(frozen=True, slots=True)
class LengthRange:
    """Whole numbers from `low` to `high`, both among them; written "A" or "A:B"."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """What to generate. The first `shared_prefix` tokens of every prompt are the same; they count in `prompt_len`.

    `arrival_rate` is in requests per second, None for all at once. Raises RequestError for a prefix that is too long.
    """

    num_requests: int
    prompt_len: LengthRange
    output_len: LengthRange
    shared_prefix: int = 0
    arrival_rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shared_prefix > self.prompt_len.low:
            raise RequestError(
                f"{self.shared_prefix} tokens are more than the shortest prompt has (prompt_len {self.prompt_len}, of "
                "which they are a part)",
                "shared_prefix",
            )

    def as_json(self) -> dict[str, Any]:
        """Its fields as plain values."""
        return {
            "num_requests": self.num_requests,
            "prompt_len": [self.prompt_len.low, self.prompt_len.high],
            "output_len": [self.output_len.low, self.output_len.high],
            "shared_prefix": self.shared_prefix,
            "arrival_rate": self.arrival_rate,
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True)
class FileWorkload:
    """Requests that were read from the file `path`."""

    path: Path
    jobs: tuple[Job, ...]

    def as_json(self) -> dict[str, Any]:
        """Where they are from, and how many there are."""
        return {"file": str(self.path), "num_requests": len(self.jobs)}


def generate_jobs(spec: WorkloadSpec, token_ids: Sequence[int]) -> list[Job]:
    """Requests whose prompts are random draws from `token_ids`; lengths are uniform over their spans.

    The first request arrives at 0, the gaps after it are exponential (a Poisson process). Lengths, tokens and arrivals
    have a random stream each: another rate leaves the prompts as they were.
    """
    if not token_ids:
        raise RequestError("the model's vocabulary has no token that is not special: no prompt can be made")
    lengths, tokens, gaps = (np.random.default_rng((spec.seed, stream)) for stream in range(3))
    ids = np.array(token_ids, np.int64)
    prefix = tokens.choice(ids, spec.shared_prefix)
    prompt_lens = lengths.integers(spec.prompt_len.low, spec.prompt_len.high, spec.num_requests, endpoint=True)
    output_lens = lengths.integers(spec.output_len.low, spec.output_len.high, spec.num_requests, endpoint=True)
    arrivals = np.zeros(spec.num_requests)
    if spec.arrival_rate is not None:
        arrivals[1:] = gaps.exponential(1.0 / spec.arrival_rate, spec.num_requests - 1).cumsum()
    jobs = []
    for prompt_len, output_len, arrival in zip(prompt_lens, output_lens, arrivals, strict=True):
        own = tokens.choice(ids, prompt_len - spec.shared_prefix)
        jobs.append(Job((*prefix.tolist(), *own.tolist()), int(output_len), float(arrival)))
    return jobs


def non_special_ids(vocab_size: int, special_ids: frozenset[int]) -> list[int]:
    """The ids of a vocabulary that are no special tokens."""
    return [token for token in range(vocab_size) if token not in special_ids]


def read_workload(path: Path) -> FileWorkload:
    """The requests of a JSONL file, in order of arrival.

    A line is an object with `prompt` (text) or `prompt_token_ids`, with `max_tokens`, and with `arrival` (seconds after
    the start, default 0) where wanted. Raises RequestError that names the line and what is wrong with it.
    """
    try:
        lines = path.read_bytes().splitlines()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"cannot read {path}: {reason}") from error
    jobs = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                jobs.append(_job(_fields(line)))
            except RequestError as error:
                raise RequestError(f"{path}, line {number}: {error}") from None
    if not jobs:
        raise RequestError(f"{path} holds no requests")
    return FileWorkload(path, tuple(sorted(jobs, key=lambda job: job.arrival)))


def _fields(line: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, a number of 4,300 digits
        raise RequestError(f"not a line of JSON: {error}") from None
    if not isinstance(fields, dict):
        raise RequestError("not a JSON object")
    unknown = sorted(set(fields) - set(_FIELDS))
    if unknown:
        raise RequestError(f"{shown(unknown[0])} is no field of a workload; known: {', '.join(_FIELDS)}")
    return fields


def _job(fields: Mapping[str, Any]) -> Job:
    if ("prompt" in fields) == ("prompt_token_ids" in fields):
        raise RequestError("give either 'prompt' or 'prompt_token_ids'")
    text, ids = fields.get("prompt"), fields.get("prompt_token_ids")
    if "prompt" in fields and (not isinstance(text, str) or not text):
        raise RequestError(f"prompt={shown(text)}: must be text that is not empty")
    if text is None and (not isinstance(ids, list) or not ids or not all(_is_whole(token, 0) for token in ids)):
        raise RequestError(f"prompt_token_ids={shown(ids)}: must be a list of token ids that is not empty")
    max_tokens: Any = fields.get("max_tokens")
    arrival: Any = fields.get("arrival", 0.0)
    if not _is_whole(max_tokens, 1):
        raise RequestError(f"max_tokens={shown(max_tokens)}: must be a whole number, at least 1")
    is_number = isinstance(arrival, (int, float)) and not isinstance(arrival, bool)
    if not is_number or not 0 <= arrival <= MAX_COUNT:  # NaN fails the comparison
        raise RequestError(f"arrival={shown(arrival)}: must be a number of seconds, at least 0")
    return Job(tuple(ids or ()) if text is None else text, max_tokens, float(arrival))


def _is_whole(value: Any, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= MAX_COUNT
