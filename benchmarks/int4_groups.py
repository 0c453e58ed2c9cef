"""What int4 weights in groups of 64 would lose against groups of 32: error of random weights, perplexity of SmolLM2.

    python -m benchmarks.int4_groups --model DIRECTORY [--text FILE ...]

Weights become 16 levels a group, a scale and a minimum that leave the least squared error (rounded to float16), as
Octavo makes them. The model is run by transformers in float32, all matrices of the layers quantized, over windows of
512 tokens of the text (README and docs). Needs the `test` extra and a directory with SmolLM2 in safetensors (the
built-in file holds groups of 32 already: read as such, these lose nothing more there).
"""

import argparse
import math
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parent.parent
WINDOW = 512
REFITS = 4


def quantized(weights: torch.Tensor, group: int) -> torch.Tensor:
    """The weights after 4 bits in groups of `group` along the last axis. [outputs, inputs], float32."""
    x = weights.reshape(-1, group)
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    scale, minimum = (high - low) / 15, low
    best, least = x, torch.full_like(low, math.inf)
    for _ in range(REFITS):
        scale, minimum = scale.half().float(), minimum.half().float()
        codes = ((x - minimum) / scale.clamp(min=1e-12)).round().clamp(0, 15)
        made = codes * scale + minimum
        error = ((x - made) ** 2).sum(1, keepdim=True)
        best, least = torch.where(error < least, made, best), torch.minimum(error, least)
        off = codes - codes.mean(1, keepdim=True)
        spread = (off**2).sum(1, keepdim=True)
        scale = torch.where(spread > 0, (off * x).sum(1, keepdim=True) / spread.clamp(min=1e-12), scale)
        minimum = x.mean(1, keepdim=True) - scale * codes.mean(1, keepdim=True)
    return best.reshape(weights.shape)


@torch.inference_mode()
def perplexity(model: torch.nn.Module, ids: torch.Tensor) -> float:
    """e to the mean negative log-probability of every token but each window's first. `ids`: [windows, WINDOW]."""
    total = 0.0
    for window in ids:
        logits = model(window[None]).logits[0, :-1].double()
        total += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    return math.exp(total / (ids.numel() - len(ids)))


def random_error(group: int) -> float:
    """Relative error of products of normal weights with normal inputs."""
    random = torch.Generator().manual_seed(0)
    weights, x = torch.randn(2048, 1536, generator=random), torch.randn(1536, 256, generator=random)
    exact = weights.double() @ x.double()
    made = quantized(weights, group).double() @ x.double()
    return float((made - exact).norm() / exact.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a directory in Hugging Face's layout")
    parser.add_argument("--text", nargs="*", type=Path, default=[ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))])
    parser.add_argument("--windows", type=int, default=24)
    args = parser.parse_args()
    text = "\n".join(path.read_text() for path in args.text)
    ids = AutoTokenizer.from_pretrained(args.model)(text, return_tensors="pt").input_ids[0]
    ids = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)[: args.windows]
    print(f"{ids.numel()} tokens of {len(args.text)} files")
    print("| groups of | error of random products | perplexity |\n| --- | --- | --- |")
    for group in (0, 32, 64):
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
        if group:
            for module in model.model.layers.modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight.data = quantized(module.weight.data, group)
        error = f"{random_error(group):.4f}" if group else "0"
        print(f"| {group or 'as stored'} | {error} | {perplexity(model, ids):.3f} |", flush=True)


if __name__ == "__main__":
    main()
