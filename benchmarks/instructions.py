"""How many instructions kernels take in two versions of Octavo, counted by valgrind: the same every time, whatever else
runs on the machine.

    python -m benchmarks.instructions OLD/bin/python NEW/bin/python
    python -m benchmarks.instructions OLD/bin/python NEW/bin/python --kernels qkv decode --formats int4 --rows 1 64

Shapes are SmolLM2's. On one thread, by the variant for AVX2: valgrind knows no AVX-512 (there `objdump` is asked:
tests/integration/native/test_disassembly.py). Fewer instructions are not always less time; more of them that do the
same work seldom are.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from octavo.tools.text import table

KERNELS = ("qkv", "output", "gate_up", "down", "decode", "prefill", "rms_norm", "rope + cache write")  # as they come
FORMATS = ("bfloat16", "int8", "int4")
ROWS = (1, 4, 16, 64)
MARK = "getppid"  # what the child calls around each kernel: valgrind writes the counts so far, and begins anew
# Runs in either version: what is measured is that version's own `kernel_cases`.
CHILD = """
import dataclasses, json, os, sys
from octavo.models.config_huggingface import arch_from_huggingface
from octavo.ops import cpu
from octavo.tools.bench.kernel_cases import KernelSetup, case_groups

config = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 1, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 1024,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "hidden_act": "silu",
}
wanted = json.loads(sys.argv[1])
device = cpu.open_device("cpu", "bfloat16", 1)
assert device.handle.native.isa == os.environ["OCTAVO_CPU_ISA"]
arch = arch_from_huggingface(config, {}, None)
order = ["qkv", "output", "gate_up", "down", "head", "decode", "prefill", "rms_norm", "rope + cache write"]
names = []
for format in wanted["formats"]:
    formats = dict.fromkeys(("qkv", "output", "gate_up", "down", "head"), format)
    missing = {name for name in wanted["kernels"] if name in formats or format == wanted["formats"][0]}
    for cases in case_groups(KernelSetup(arch, device, "bfloat16", 16, 1, formats)):
        for case in cases:
            if case.kernel not in missing or (case.kernel in formats and case.rows not in wanted["rows"]):
                continue
            fields = {field.name for field in dataclasses.fields(case)}
            run = case.runs[0] if "runs" in fields else case.run
            run()
            os.getppid()
            run()
            os.getppid()
            shape = f"{case.kernel}, {case.shape}, rows {case.rows}" + (f" at {case.context}" * (case.context > 0))
            names.append((shape, case.num_calls))
        if not missing & set(order[order.index(cases[-1].kernel) + 1 :]):  # none of those to come
            break
print(json.dumps(names))
"""


def counts(python: str, wanted: dict[str, object]) -> dict[str, float]:
    """Instructions of one call of each case, in the version that `python` has."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "counts"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", f"--dump-before={MARK}"]
        done = subprocess.run(
            [*command, python, "-c", CHILD, json.dumps(wanted)],
            env=os.environ | {"OCTAVO_CPU_ISA": "avx2", "PYTHONHASHSEED": "0"},
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode != 0:
            sys.exit(done.stderr)
        names = json.loads(done.stdout.splitlines()[-1])
        # Part 1 is what came before the first mark; then there is one for each case, and one for what is between two.
        return {name: counted(out.with_name(f"counts.{2 + 2 * i}")) / calls for i, (name, calls) in enumerate(names)}


def counted(part: Path) -> int:
    """The total of one file of callgrind's."""
    found = re.search(r"^totals: (\d+)$", part.read_text(), re.MULTILINE)
    if found is None:
        sys.exit(f"{part}: has no total")
    return int(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS[:6])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, help="of products")
    args = parser.parse_args()
    wanted = {"kernels": args.kernels, "formats": args.formats, "rows": args.rows}
    old, new = (counts(python, wanted) for python in (args.old, args.new))
    rows = [("kernel", "old", "new", "new / old")]
    for name, before in old.items():
        after = new.get(name)
        rows.append((name, f"{before:,.0f}", "" if after is None else f"{after:,.0f}", f"{(after or 0) / before:.3f}"))
    print(table(rows, "<>>>"))


if __name__ == "__main__":
    main()
