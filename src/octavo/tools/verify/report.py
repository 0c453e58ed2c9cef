"""What a verification found, as text for people. Knows the values of `verifier`; runs and prints nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.tools.bench.workload import LengthRange
from octavo.tools.text import environment_rows, table
from octavo.tools.verify.variations import VerifiedRequest
from octavo.tools.verify.verifier import VariationResult


def head_text(report: Mapping[str, Any]) -> str:
    work, baseline = report["workload"], report["baseline"]
    prompts = f"{work['num_prompts']} prompts of {LengthRange(*work['prompt_len'])} tokens, each greedy and seeded"
    rows = [
        *environment_rows(report),
        ("requests", f"{prompts}, {work['output_len']} tokens each, seed {work['seed']}"),
        ("baseline", f"each alone: {_counts(baseline)}"),
    ]
    return table(rows) + "\n"


def _counts(numbers: Mapping[str, int]) -> str:
    sequences, tokens, logprobs = (numbers[name] for name in ("num_sequences", "num_tokens", "num_logprobs"))
    return f"{sequences} sequences, {tokens:,} tokens, {logprobs:,} logprobs"


def variation_text(result: VariationResult, requests: Sequence[VerifiedRequest]) -> str:
    """A variation for people: one line, and one more for what is wrong."""
    comparison = result.comparison
    verdict = "equal" if result.is_equal else "FAILED" if result.failure else "DIFFERENT"
    parts = [] if comparison is None else [_counts(comparison.counts())]
    parts += [f"{result.preemptions} preemptions"] * bool(result.preemptions)
    parts += [f"{result.prefix_hit_tokens} tokens from the cache"] * bool(result.prefix_hit_tokens)
    lines = [f"{verdict:<10} {result.name:<24} {', '.join(parts)}"]
    if result.failure:
        lines.append(f"{'':<11}{result.failure}")
    if comparison is not None and comparison.first is not None:
        first, indent = comparison.first, " " * 11
        lines.append(
            f"{indent}{comparison.num_different} of {comparison.num_sequences} sequences differ, logprobs by up to "
            f"{comparison.largest_gap:.3g} after the same tokens; the first:\n"
            f"{indent}{requests[first.sequence].name}, {first}"
        )
    return "\n".join(lines)
