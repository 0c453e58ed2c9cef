"""The built-in model, for real: its text, and its agreement with transformers on the same dequantized weights."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from octavo import LLM, SamplingParams
from tests.support.tiny_models import transformers_model_from_gguf

PROMPTS = (
    "The capital of France is", "Once upon a time, in a small village by the sea,", "def fibonacci(n):\n",
    "The three laws of motion are", "In 1969, humans first", "A recipe for tomato soup: first,",
    "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n", "Dear Sir or Madam,\n\n",
    "The mitochondria is the", "import numpy as np\n\n", "Roses are red,", "Q: Who wrote Hamlet?\nA:",
    "La capitale de l'Allemagne est", "1, 2, 3, 5, 8,", "The weather today is", "To be, or not to be,",
    "Water boils at", "The largest planet of the solar system", "# Introduction\n\nMachine learning", "Hello",
)  # fmt: skip
NUM_TOKENS = 48
GAP = 1e-3


@pytest.fixture(scope="module")
def greedy(smollm2_path):
    """(prompt + output ids, prompt length) of each prompt, all generated together in float32, weights too."""
    with LLM(str(smollm2_path), dtype="float32", quantization="none", device="cpu", kv_cache_memory="256MiB") as llm:
        params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
        outputs = llm.generate(list(PROMPTS), params, progress=False)
        stats = llm.get_stats()
    assert stats["forwards"] == stats["steps"] == NUM_TOKENS
    return outputs


@torch.inference_mode()
def test_greedy_tokens_are_those_of_transformers(smollm2_path, greedy):
    """Teacher-forced on our own tokens: each must be transformers' choice wherever it has a clear one."""
    model = transformers_model_from_gguf(smollm2_path)
    num_clear = 0
    for output in greedy:
        ids = output.prompt_token_ids + output.outputs[0].token_ids
        logits = model(torch.tensor([ids])).logits[0, len(output.prompt_token_ids) - 1 : -1]
        best, choice = logits.topk(2, dim=-1)
        is_clear = best[:, 0] - best[:, 1] >= GAP
        num_clear += int(is_clear.sum())
        ours = torch.tensor(output.outputs[0].token_ids)
        assert torch.equal(ours[is_clear], choice[is_clear, 0]), output.prompt
    assert num_clear >= 0.98 * len(PROMPTS) * NUM_TOKENS


def test_the_command_line_names_paris(smollm2_path):
    command = [sys.executable, "-m", "octavo", "generate", "The capital of France is", "--model", str(smollm2_path)]
    done = subprocess.run(
        [*command, "--temperature", "0", "--max-tokens", "8"], capture_output=True, text=True, timeout=120, check=True
    )
    assert "Paris" in done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr  # the engine's own line, and no complaint at exit


def test_a_start_brings_nothing_that_it_does_not_need(smollm2_path):
    """Each of these costs a start its share of the time to the first token; none has a part in it."""
    code = (
        "import sys; from octavo.cli.main import main; code = main(sys.argv[1:]); "
        "print(sorted(set(sys.modules) & set(sys.argv[0].split())), file=sys.stderr); sys.exit(code)"
    )
    idle = "torch jinja2 huggingface_hub rich yaml transformers zipfile tempfile asyncio octavo.tools.batch.runner"
    code = code.replace("sys.argv[0]", repr(idle))
    words = ["generate", "The capital of France is", "--model", str(smollm2_path), "--max-tokens", "1", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--device", "cpu"], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr.strip() == "[]"


@pytest.fixture(scope="module")
def perplexity(smollm2_path):
    """Of 1,033 tokens of plain English, in float32 but for what is said; weights dequantized unless said otherwise."""
    text = (Path(__file__).parents[2] / "support" / "fixtures" / "mill.txt").read_text(encoding="utf-8")

    @functools.cache
    def measure(**fields: str | None) -> float:
        always = {"dtype": "float32", "quantization": "none", "device": "cpu", "kv_cache_memory": "256MiB"}
        with LLM(str(smollm2_path), **(always | fields)) as llm:
            return llm.perplexity(text)[0]

    assert 10 < measure() < 40
    return measure


@pytest.mark.parametrize(
    ("held", "against", "most"),
    [
        ({"quantization": None}, {}, 1.01),  # the file's own Q4_1 and Q8_0
        ({"quantization": "int8"}, {}, 1.01),
        ({"quantization": "int4"}, {"dtype": "bfloat16"}, 1.06),
        ({"kv_dtype": "int8"}, {}, 1.01),
    ],
)
def test_few_bits_keep_the_perplexity(perplexity, held, against, most):
    assert perplexity(**held) != perplexity(**against)
    assert perplexity(**held) / perplexity(**against) <= most


@pytest.mark.slow
def test_same_tokens_whatever_the_company(smollm2_path, greedy):
    """The settings of the tiny model's test, a few of them, on the real one."""
    for fields in (
        {"max_num_batched_tokens": 16},
        {"enable_prefix_caching": False, "max_num_batched_tokens": 64},
        {"num_blocks": 24, "max_model_len": 128},
    ):
        kept = {"kv_cache_memory": "256MiB"} if "num_blocks" not in fields else {}
        kept |= {"dtype": "float32", "quantization": "none", "device": "cpu"}
        with LLM(str(smollm2_path), **kept, **fields) as llm:
            params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
            outputs = llm.generate(list(PROMPTS), params, progress=False)
            again = [llm.generate(prompt, params)[0] for prompt in PROMPTS[:4]]
            if "num_blocks" in fields:
                assert llm.get_stats()["preemptions"] >= 20
        ours = [output.outputs[0].token_ids for output in outputs]
        assert ours == [output.outputs[0].token_ids for output in greedy]
        assert [output.outputs[0].token_ids for output in again] == ours[:4]
