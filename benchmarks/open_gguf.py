"""A 7B-sized GGUF file in two versions of Octavo, in turns: to open it, and from process start to its first token.

    python -m benchmarks.open_gguf OLD/bin/python NEW/bin/python

The file has the shapes of Llama 2 7B in Q4_0 (3.9 GB) and no weights: its tensors are a hole in a sparse file, so that
it takes no disk, and reading it costs memory bandwidth only. Ratios are new / old within a round.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

from benchmarks.machine import (
    add_run_flags,
    environment,
    exclusive,
    print_environment,
    print_figures,
    say,
    write_json,
)
from benchmarks.start import start

NUM_LAYERS, HIDDEN, INNER, HEADS, VOCAB = 32, 4096, 11008, 32, 32000
OPEN = """
import sys, time
from pathlib import Path
from octavo.models.load import read_model
times = []
for _ in range(5):
    begin = time.perf_counter()
    files = read_model(Path(sys.argv[1]))
    times.append(time.perf_counter() - begin)
print(sorted(times)[2])
"""


def tensors() -> dict[str, tuple[int, ...]]:
    """Shapes [out, in] by name, as llama.cpp names them."""
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, HIDDEN)}
    for layer in range(NUM_LAYERS):
        shapes = {
            "attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,), "attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN, HIDDEN),
            "attn_v": (HIDDEN, HIDDEN), "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (INNER, HIDDEN),
            "ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER),
        }  # fmt: skip
        found |= {f"blk.{layer}.{name}.weight": shape for name, shape in shapes.items()}
    return found | {"output_norm.weight": (HIDDEN,), "output.weight": (VOCAB, HIDDEN)}


def write_file(path: Path) -> None:
    """The header, then a hole where the tensors would be."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(NUM_LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_tokenizer_model("llama")
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    writer.add_token_list(["<unk>", "<s>", "</s>", *letters, *(f"word{i}" for i in range(VOCAB - 259))])
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(VOCAB - 259)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (VOCAB - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, shape in tensors().items():
        kind = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else gguf.GGMLQuantizationType.Q4_0
        num_bytes = shape[0] * 4 if len(shape) == 1 else shape[0] * shape[1] // 32 * 18
        if len(shape) == 1:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), num_bytes)
        else:
            stored = (shape[0], shape[1] // 32 * 18)
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), num_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    sizes = [info.nbytes for shard in writer.tensors for info in shard.values()]
    writer.close()
    padded = sum(-(-size // 32) * 32 for size in sizes)
    header = -(-path.stat().st_size // 32) * 32
    with path.open("r+b") as file:
        file.truncate(header + padded)


def open_seconds(python: str, path: Path) -> float:
    """Seconds of `read_model`: the header, the configuration, every tensor's place checked."""
    done = subprocess.run([python, "-c", OPEN, str(path)], stdout=subprocess.PIPE, text=True, check=True, cwd="/")
    return float(done.stdout)


def start_seconds(python: str, path: Path, threads: int) -> float:
    """Process start to first token."""
    words = [python, "-m", "octavo", "generate", "word1", "--model", str(path), "--max-tokens", "1"]
    words += ["--temperature", "0", "--kv-cache-memory", "1GiB", "--max-model-len", "512", "--threads", str(threads)]
    return start([*words, "--ignore-eos"])[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    add_run_flags(parser, rounds=5)
    args = parser.parse_args()
    ratios: dict[str, list[float]] = {}
    with exclusive(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "llama-7b.Q4_0.gguf"
        write_file(path)
        for python in (args.old, args.new):  # the file into the page cache, Python's own files too
            start_seconds(python, path, args.threads)
        for number in range(args.rounds):
            order = [args.old, args.new] if number % 2 else [args.new, args.old]
            opened = {python: open_seconds(python, path) for python in order}
            started = {python: start_seconds(python, path, args.threads) for python in order}
            for name, found in (("open", opened), ("start to first token", started)):
                ratios.setdefault(name, []).append(found[args.new] / found[args.old])
            say(f"round {number + 1} of {args.rounds}: {opened}, {started}")
    report = {"machine": environment("numpy"), "7B Q4_0, new / old": ratios}
    write_json(args.json, report)
    print_environment(report)
    print_figures(report, lambda _name: 3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
