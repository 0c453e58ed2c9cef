"""A loop of one's own over `LLMEngine.step`: requests come in while others run, and one is aborted on the way.

python examples/own_loop.py [MODEL]
"""

import sys

from octavo import EngineConfig, LLMEngine, SamplingParams

ARRIVALS = {0: "The capital of France is", 4: "Books are folded because", 8: "A story without an end:"}  # by step


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
    engine = LLMEngine(EngineConfig.from_fields(model=model))
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    step = 0
    while step <= max(ARRIVALS) or engine.has_unfinished_requests():
        if step in ARRIVALS:
            engine.add_request(ARRIVALS[step], params, request_id=f"arrived-at-{step}")
        if step == 16:
            engine.abort_request("arrived-at-8")  # its last output comes with the next step
        for output in engine.step():  # whatever this step changed, each with all that is known of the request
            if output.finished:
                completion = output.outputs[0]
                print(f"step {step}: {output.request_id} [{completion.finish_reason}] {completion.text!r}")
        step += 1
    stats = engine.get_stats()
    print(f"{stats['generation_tokens']} tokens in {stats['forwards']} forwards, {stats['blocks_used']} blocks in use")


if __name__ == "__main__":
    main()
