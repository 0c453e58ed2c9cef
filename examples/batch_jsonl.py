"""Many requests from a file of JSON lines, one line of results for each, in the order of the input.

    python examples/batch_jsonl.py [MODEL [INPUT.jsonl]] > output.jsonl

A line is {"prompt": text} and any sampling parameters. Without INPUT three lines of our own are run. (`octavo generate
--input FILE --output FILE` does this for files of any size, and goes on where it was interrupted.)
"""

import json
import sys
from pathlib import Path

from octavo import LLM, SamplingParams

LINES = """{"prompt": "The capital of France is", "temperature": 0}
{"prompt": "Once upon a time", "temperature": 0.8, "seed": 7, "max_tokens": 24}
{"prompt": "One, two, three,", "temperature": 0, "stop": ["ten"]}"""


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
    text = Path(sys.argv[2]).read_text(encoding="utf-8") if len(sys.argv) > 2 else LINES
    requests = [json.loads(line) for line in text.splitlines() if line.strip()]
    prompts = [request.pop("prompt") for request in requests]
    with LLM(model) as llm:
        outputs = llm.generate(prompts, [SamplingParams(**request) for request in requests])
    for output in outputs:
        completion = output.outputs[0]
        record = {"prompt": output.prompt, "text": completion.text, "finish_reason": completion.finish_reason}
        print(json.dumps(record | {"seed": output.seed}, ensure_ascii=False))


if __name__ == "__main__":
    main()
