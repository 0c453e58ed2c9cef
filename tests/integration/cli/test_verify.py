"""`octavo verify` on a tiny model whose arithmetic is made to be independent of the batch; and with a fault put in."""

import json
import math
import re
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from octavo.models.batch import Batch
from octavo.models.decoder import Decoder
from octavo.tools.verify.variations import variations_for
from tests.support.command_line import run_cli
from tests.support.tiny_models import tiny_model_dir

NAMES = (
    "all at once, shuffled (1)", "all at once, shuffled (2)", "prefix cache cold", "prefix cache hit",
    "prefix cache off", "chunks of 16", "chunks of 64", "preempted",
)  # fmt: skip
SMALL = (
    "--dtype", "float32", "--device", "cpu", "--threads", "1", "--quiet", "--num-prompts", "2", "--prompt-len", "20:36",
    "--output-len", "17",
)  # fmt: skip
verify = partial(run_cli, "verify")


def token_by_token(forward, batch: Batch, model: Decoder, kv):
    """A forward that computes each token by itself, earlier positions first: what PyTorch then does is independent of
    the batch.
    """
    import torch

    rows: list = [None] * len(batch.tokens)
    for place in np.argsort(batch.positions, kind="stable"):
        row, position = int(batch.seq_ids[place]), batch.positions[place]
        groups = tuple(
            group._replace(
                slots=group.slots[place : place + 1],
                block_table=group.block_table[row : row + 1],
                context_lens=np.array([position + 1], np.int32),
            )
            for group in batch.groups
        )
        single = Batch(
            tokens=batch.tokens[place : place + 1],
            positions=batch.positions[place : place + 1],
            seq_ids=np.zeros(1, np.int32),
            row_starts=np.array([0, 1], np.int32),
            sample_rows=np.zeros(1, np.int32),
            groups=groups,
        )
        rows[place] = forward(model, single, kv)
    return torch.cat(rows)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory) -> Path:
    """As `tiny_model`, with one layer."""
    return tiny_model_dir(tmp_path_factory.mktemp("small") / "llama", num_hidden_layers=1)


@pytest.fixture
def only(monkeypatch):
    """A function that leaves `verify` the settings of these names."""

    def choose(*names: str) -> None:
        def chosen(*args, **options):
            return [setting for setting in variations_for(*args, **options) if setting.name in names]

        monkeypatch.setattr("octavo.tools.verify.verifier.variations_for", chosen)

    return choose


@pytest.fixture
def reference(monkeypatch):
    """Engines compute by PyTorch, on a CPU too."""
    from octavo.ops import reference

    monkeypatch.setattr("octavo.engine.build._choose_ops", lambda *_, **__: reference)


@pytest.fixture
def independent(reference, monkeypatch):
    """PyTorch made independent of company; `fault(batch)`, where one is appended, is added to all hidden.

    On one thread whatever is asked for: PyTorch cuts a product by their number.
    """
    import torch

    torch.set_num_threads(1)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)

    forward, logits = Decoder.forward, Decoder.logits
    faults: list = []

    def new_forward(model, batch, kv):
        hidden = token_by_token(forward, batch, model, kv)
        for fault in faults:
            hidden = hidden + fault(batch)
        return hidden

    def new_logits(model, hidden, rows):
        return torch.cat([logits(model, hidden, rows[index : index + 1]) for index in range(len(rows))])

    monkeypatch.setattr(Decoder, "forward", new_forward)
    monkeypatch.setattr(Decoder, "logits", new_logits)
    return faults


def test_all_is_equal_where_company_does_not_matter(small_model, independent, capsys):
    assert verify(small_model, *SMALL) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("equal", "DIFF", "FAIL"))]
    assert all(line.startswith("equal ") for line in lines)
    for name, line in zip((*NAMES, "threads "), lines, strict=True):  # as many as there are cores
        assert name in line
        assert "4 sequences, 68 tokens, " in line
    assert " preemptions" in lines[7]
    assert "tokens from the cache" in lines[3]
    assert "cache" not in lines[4].partition("off")[2]


def test_a_fault_that_depends_on_the_batch_is_found(small_model, independent, capsys):
    """Some last bits in steps of over 64 tokens: chunks never see it."""
    independent.append(lambda batch: 1e-6 if len(batch.tokens) > 64 else 0.0)
    assert verify(small_model, *SMALL, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["is_equal"]
    found = {setting["name"]: setting for setting in report["settings"]}
    assert not found["all at once, shuffled (1)"]["is_equal"]
    assert not found["prefix cache off"]["is_equal"]
    assert found["chunks of 16"]["is_equal"]
    assert found["chunks of 64"]["is_equal"]
    first = found["prefix cache off"]["first_difference"]
    assert set(first) == {
        "prompt", "sampling", "position", "tokens", "logprobs_of", "logprobs", "logprob_bits",
    }  # fmt: skip
    assert first["logprob_bits"][0] != first["logprob_bits"][1]
    assert found["preempted"]["preemptions"] > 0
    assert found["prefix cache hit"]["prefix_hit_tokens"] > found["prefix cache cold"]["prefix_hit_tokens"]
    assert report["baseline"]["num_tokens"] == 68
    assert report["engine"]["dtype"] == "float32"


def test_a_sampler_that_looks_at_its_neighbours_is_found(small_model, independent, only, monkeypatch, capsys):
    from octavo.engine import sampler

    sample = sampler.sample

    def nosy(ops, logits, draws, rules):
        outcomes = sample(ops, logits, draws, rules)
        return [outcome._replace(token_id=3) for outcome in outcomes] if len(draws) == 4 else outcomes

    monkeypatch.setattr(sampler, "sample", nosy)
    only("all at once, shuffled (1)")
    assert verify(small_model, *SMALL) == 1
    out = capsys.readouterr().out
    assert "DIFFERENT  all at once, shuffled (1)" in out
    assert "of 4 sequences differ" in out
    assert "and 3; logprobs -" in out


def test_settings_that_did_nothing_fail_by_name(small_model, independent, capsys):
    short = ("--num-prompts", 1, "--prompt-len", 4, "--output-len", 3)
    assert verify(small_model, *SMALL, *short, "--json") == 1
    found = {setting["name"]: setting for setting in json.loads(capsys.readouterr().out)["settings"]}
    assert "no prompt fills a block" in found["prefix cache hit"]["failure"]
    assert "none was cut" in found["chunks of 16"]["failure"]
    assert "no sequence was preempted" in found["preempted"]["failure"]
    assert found["preempted"]["num_different"] == 0
    assert found["prefix cache off"]["is_equal"]


def test_a_request_that_fails_fails_its_setting(small_model, independent, only, capsys):
    only("prefix cache off")
    independent.append(lambda batch: math.nan if len(batch.tokens) > 64 else 0.0)
    assert verify(small_model, *SMALL) == 1
    out = capsys.readouterr().out
    assert "FAILED     prefix cache off" in out
    assert "not finite" in out


def test_one_model_is_in_memory_at_a_time(small_model, monkeypatch, capsys):
    from octavo.llm_engine import LLMEngine

    init = LLMEngine.__init__
    models: list = []

    def counted(engine, config, **options):
        assert not [model for model in models if model() is not None], "the model before is still there"
        init(engine, config, **options)
        models.append(weakref.ref(engine._engine.runner.model))

    monkeypatch.setattr(LLMEngine, "__init__", counted)
    assert verify(small_model, *SMALL, "--num-prompts", 1) in (0, 1)
    assert len(models) == 6


# --- the command as it is --------------------------------------------------------------------------------------------


def test_an_interrupt_is_130(tiny_model, interrupted, capsys):
    assert verify(tiny_model, *SMALL) == 130


def test_pytorch_is_told_from_the_rest(small_model, reference, capsys):
    """Its products round differently for different numbers of rows, in the last bits: said, with both, and exit 1."""
    assert verify(small_model, *SMALL) == 1
    out = capsys.readouterr().out
    assert "backend reference" in out
    assert re.search(r"DIFFERENT  prefix cache off .*\n.* of 4 sequences differ.*\n +prompt .*0x[0-9a-f]{16}", out)


def test_the_engine_as_it_is_gives_the_same_in_every_setting(small_model, capsys):
    code = verify(small_model, *SMALL, "--json")
    report = json.loads(capsys.readouterr().out)
    if report["engine"]["backend"] == "reference":
        pytest.skip("the engine computes by PyTorch, whose products round differently for different numbers of rows")
    unequal = [setting for setting in report["settings"] if not setting["is_equal"]]
    assert (code, unequal) == (0, [])
