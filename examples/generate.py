"""Complete several prompts at once, greedy, with the log-probability of each text.

python examples/generate.py [MODEL]
"""

import sys

from octavo import LLM, SamplingParams

PROMPTS = ["The capital of France is", "A book is printed on large sheets that", "The opposite of hot is"]


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
    with LLM(model) as llm:
        for output in llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=24)):
            completion = output.outputs[0]
            print(f"{output.prompt!r} -> {completion.text!r}")
            print(f"    {len(completion.token_ids)} tokens, log-probability {completion.cumulative_logprob:.3f}")


if __name__ == "__main__":
    main()
