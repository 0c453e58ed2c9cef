"""Whether two versions of Octavo give the same bits: 50 prompts, greedy and seeded, in each way to hold the weights.

    VERSION_A/bin/python benchmarks/bits.py record a.json
    VERSION_B/bin/python benchmarks/bits.py record b.json
    python benchmarks/bits.py compare a.json b.json

Uses the public API alone, so that any two versions can be compared. Log-probabilities are hexadecimal floats.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

NUM_TOKENS = 24
HOLDINGS: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16", "quantization": "none"},
    "float32": {"dtype": "float32", "quantization": "none"},
    "as stored": {},
    "int8": {"quantization": "int8"},
    "int4": {"quantization": "int4"},
    "int8, int8 KV": {"quantization": "int8", "kv_dtype": "int8"},
}
SUBJECTS = (
    "The capital of France", "A recipe for tomato soup", "def fibonacci(n):\n", "Once upon a time", "1, 2, 3, 5, 8,",
    "The three laws of motion", "La capitale de l'Allemagne", "Roses are red,", "SELECT name FROM",
    "Dear Sir or Madam,",
)  # fmt: skip
FILLER = "A book is printed on big sheets that are cut into pages, and bound along one edge. "


def prompts() -> list[str]:
    """50 prompts of some 5 to 400 tokens."""
    return [FILLER * (number % 5 * (number // 10 + 1)) + SUBJECTS[number % 10] for number in range(50)]


def record(path: Path, model: str) -> None:
    """What this version says, written to `path`."""
    from octavo import LLM, SamplingParams, __version__

    shared: dict[str, Any] = {"max_tokens": NUM_TOKENS, "logprobs": 3, "ignore_eos": True}
    seeded = {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "repetition_penalty": 1.1, "presence_penalty": 0.2}
    found: dict[str, Any] = {}
    for name, fields in HOLDINGS.items():
        with LLM(model, device="cpu", kv_cache_memory="512MiB", **fields) as llm:
            each = [SamplingParams(temperature=0.0, prompt_logprobs=0, **shared)] * 50
            each += [SamplingParams(seed=number, **seeded, **shared) for number in range(50)]
            outputs = llm.generate(prompts() * 2, each, progress=False)
        found[name] = [traced(output) for output in outputs]
        print(f"{name}: {len(outputs)} answers", file=sys.stderr)
    path.write_text(json.dumps({"version": __version__, "model": model, "found": found}))


def traced(output: Any) -> dict[str, Any]:
    """One answer's tokens and every log-probability of it, bit for bit."""
    (choice,) = output.outputs
    return {
        "tokens": choice.token_ids,
        "logprobs": [{token: entry.logprob.hex() for token, entry in at.items()} for at in choice.logprobs],
        "prompt": [next(iter(at.values())).logprob.hex() for at in output.prompt_logprobs or [] if at],
    }


def compare(first: Path, second: Path) -> int:
    """Say where the two differ; 0 where nothing does."""
    one, other = (json.loads(path.read_text()) for path in (first, second))
    num_different = 0
    for name, answers in one["found"].items():
        different = [number for number, answer in enumerate(answers) if answer != other["found"][name][number]]
        num_logprobs = sum(len(at) for answer in answers for at in answer["logprobs"])
        num_logprobs += sum(len(answer["prompt"]) for answer in answers)
        print(f"{name}: {len(answers)} answers, {num_logprobs:,} log-probabilities, {len(different)} answers differ")
        num_different += len(different)
    return 1 if num_different else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("record")
    one.add_argument("file", type=Path)
    one.add_argument("--model", default="smollm2-135m")
    two = commands.add_parser("compare")
    two.add_argument("files", type=Path, nargs=2)
    args = parser.parse_args()
    if args.command == "record":
        record(args.file, args.model)
        return 0
    return compare(*args.files)


if __name__ == "__main__":
    sys.exit(main())
