"""The built-in model, for real: what it generates and how well it predicts, beside transformers and in few bits."""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from octavo import LLM, RequestOutput, SamplingParams
from tests.support.tiny_models import transformers_model_from_gguf

PROMPTS = (
    "The capital of France is", "Once upon a time, in a small village by the sea,", "def fibonacci(n):\n",
    "The three laws of motion are", "In 1969, humans first", "A recipe for tomato soup: first,",
    "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n", "Dear Sir or Madam,\n\n",
    "The mitochondria is the", "import numpy as np\n\n", "Roses are red,", "Q: Who wrote Hamlet?\nA:",
    "La capitale de l'Allemagne est", "1, 2, 3, 5, 8,", "The weather today is", "To be, or not to be,",
    "Water boils at", "The largest planet of the solar system", "# Introduction\n\nMachine learning", "Hello",
)  # fmt: skip
GAP = 1e-3  # a choice with less of a lead is not clear
EXACT = {"dtype": "float32", "quantization": "none", "device": "cpu"}
FEW_BITS = [  # how it is held, against what, and by which factor the perplexity may grow
    ({"quantization": None}, {}, 1.01),  # the file's own Q4_1 and Q8_0
    ({"quantization": "int8"}, {}, 1.01),
    ({"quantization": "int4"}, {"dtype": "bfloat16"}, 1.06),
    ({"kv_dtype": "int8"}, {}, 1.01),
]


def greedy_outputs(path: Path, prompts: Sequence[str], num_tokens: int) -> list[RequestOutput]:
    """Of each prompt, all generated together in float32, weights too."""
    with LLM(str(path), **EXACT, kv_cache_memory="256MiB") as llm:
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        outputs = llm.generate(list(prompts), params, progress=False)
        stats = llm.get_stats()
    assert stats["forwards"] == stats["steps"] == num_tokens
    return outputs


@torch.inference_mode()
def check_choices(path: Path, outputs: Sequence[RequestOutput]) -> None:
    """Teacher-forced on our own tokens: each must be transformers' choice wherever it has a clear one."""
    model = transformers_model_from_gguf(path).float()  # near enough for a lead of GAP, and twice as fast
    num_clear = num_tokens = 0
    for output in outputs:
        ids = output.prompt_token_ids + output.outputs[0].token_ids
        logits = model(torch.tensor([ids])).logits[0, len(output.prompt_token_ids) - 1 : -1]
        best, choice = logits.topk(2, dim=-1)
        is_clear = best[:, 0] - best[:, 1] >= GAP
        num_clear += int(is_clear.sum())
        num_tokens += len(is_clear)
        ours = torch.tensor(output.outputs[0].token_ids)
        assert torch.equal(ours[is_clear], choice[is_clear, 0]), output.prompt
    assert num_clear >= 0.98 * num_tokens


Fields = Mapping[str, str | None]


def check_few_bits(path: Path, held: Fields, against: Fields, most: float, num_chars: int | None = None) -> None:
    """What is held in few bits predicts about as well: the perplexity grows by no more than the factor `most`.

    Rounding moves each token's log-probability by some 0.1 either way, differently on each instruction set, so a text
    of 500 tokens knows its mean to about half a percent only: twice its standard error is allowed for.
    """
    few, plain, exact = (_logprobs(path, num_chars, tuple(fields.items())) for fields in (held, against, {}))
    assert 10 < math.exp(-exact.mean()) < 40
    assert not np.array_equal(few, plain)
    assert grows_by_at_most(most, few, plain)


def grows_by_at_most(most: float, few: NDArray[np.float64], plain: NDArray[np.float64]) -> bool:
    """Whether log-probabilities `few` are compatible with a perplexity of at most `most` times that of `plain`."""
    lost = plain - few
    return bool(lost.mean() - 2 * lost.std() / math.sqrt(len(lost)) <= math.log(most))


@functools.cache
def _logprobs(path: Path, num_chars: int | None, fields: tuple[tuple[str, str | None], ...]) -> NDArray[np.float64]:
    """Of plain English (1,033 tokens), in float32 and with weights dequantized but for what `fields` say."""
    text = (Path(__file__).parent / "fixtures" / "mill.txt").read_text(encoding="utf-8")
    with LLM(str(path), **(EXACT | {"kv_cache_memory": "256MiB"} | dict(fields))) as llm:
        [output] = llm.generate(text[:num_chars], SamplingParams(prompt_logprobs=0, max_tokens=1), progress=False)
    entries = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    return np.array([entry[token].logprob for token, entry in entries])
