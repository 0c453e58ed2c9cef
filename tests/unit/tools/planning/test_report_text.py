"""A plan in words: what takes memory, what fits, and how fast it would be."""

from octavo.tools.planning.report_text import plan_text
from tests.support.reports import report_of

MIB = 1 << 20
MEMORY = {
    "kv_cache": {"token_bytes": 576.0, "block_bytes": 9216, "block_size": 16, "bytes": 9216 * 100, "num_blocks": 100,
                 "tokens": 1600},
    "largest": {"kv_cache_memory": 512 * MIB, "num_blocks": 58254},
    "weights": [{"kind": "norms", "format": "float32", "bytes": 2048}],
    "weight_bytes": 2048, "workspace_bytes": 200 * MIB, "container_limit": None, "available": 800 * MIB, "fits": True,
}  # fmt: skip
CELLS = [
    {"context": 1024, "num_seqs": 1, "fits": "yes", "tokens_per_second_each": 50.0, "tokens_per_second": 50.0},
    {"context": 1024, "num_seqs": 64, "fits": "with larger settings", "tokens_per_second_each": 5.0,
     "tokens_per_second": 320.0},
    {"context": 2048, "num_seqs": 1, "fits": "yes", "tokens_per_second_each": 40.0, "tokens_per_second": 40.0},
    {"context": 2048, "num_seqs": 64, "fits": "no"},
]  # fmt: skip
PREDICTIONS = [
    {"phase": "prefill", "num_seqs": 1, "context": 1024, "tokens_per_second": 900.0, "read_limit": 9e4,
     "operations_limit": 1200.0, "share_of_limit": 0.75},
    {"phase": "decode", "num_seqs": 16, "context": 1024, "tokens_per_second": 300.0, "read_limit": 600.0,
     "operations_limit": 900.0, "share_of_limit": 0.5},
]  # fmt: skip


def test_memory_is_told_part_by_part():
    text = plan_text(report_of(memory=MEMORY, predictions=[], table=[]))
    assert "576 B a token, 9.0 KiB a block of 16: 100 blocks, 1,600 tokens" in text
    assert [line.split() for line in text.splitlines() if line.startswith("norms")] == [
        ["norms,", "float32", "2.0", "KiB"]
    ]
    assert "fits" in text
    assert "Speeds are predicted for the CPU's kernels only." in text


def test_a_container_s_limit_is_named():
    assert "a container's limit is 1.0 GiB" in plan_text(
        report_of(memory=MEMORY | {"container_limit": 1 << 30}, predictions=[], table=[])
    )


def test_what_does_not_fit_has_no_speeds():
    text = plan_text(report_of(memory=MEMORY | {"fits": False}, predictions=[], table=[]))
    assert "does not fit" in text
    assert "Speeds" not in text


def test_speeds_by_context_and_number_of_sequences():
    text = plan_text(report_of(memory=MEMORY, predictions=PREDICTIONS, table=CELLS))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line[:8].strip() in ("1,024", "2,048")}
    assert rows["1,024"] == ["50.0", "(50)", "+5.0", "(320)"]
    assert rows["2,048"] == ["40.0", "(40)", "-"]
    assert "prompt of 1,024" in text
    assert [line.split()[-4:] for line in text.splitlines() if line.startswith("decode, 16 at once")] == [
        ["300.0", "600.0", "900.0", "50%"]
    ]
