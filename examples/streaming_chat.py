"""One answer of a chat model, printed while it grows.

python examples/streaming_chat.py [MODEL [MESSAGE]]
"""

import sys

from octavo import LLM, SamplingParams


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
    message = sys.argv[2] if len(sys.argv) > 2 else "Why are books printed on large sheets?"
    params = SamplingParams(temperature=0.7, seed=1, max_tokens=120)
    with LLM(model) as llm:
        prompt = llm.engine.render_chat(
            [{"role": "user", "content": message}]
        )  # token ids, by the model's own template
        num_shown = 0
        for output in llm.generate_stream(prompt, params):  # each output has the whole text so far
            text = output.outputs[0].text
            print(text[num_shown:], end="", flush=True)
            num_shown = len(text)
    metrics, num_tokens = output.metrics, len(output.outputs[0].token_ids)
    print(f"\n[{num_tokens} tokens, the first after {metrics.time_to_first_token:.3f} s, seed {output.seed}]")


if __name__ == "__main__":
    main()
