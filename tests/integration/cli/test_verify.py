"""`octavo verify`: the comparison by hand-made differences; the command on a tiny model whose arithmetic is made to be
independent of company, and again with a fault put in.
"""

import json
import math
import re
import signal
import struct
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.cli.main import main
from octavo.config import EngineConfig
from octavo.models.batch import Batch
from octavo.models.decoder import Decoder
from octavo.tools.bench.workload import LengthRange, WorkloadSpec, generate_jobs
from octavo.tools.verify.compare import Comparison, Trace, bits, compare, hexadecimal
from octavo.tools.verify.variations import variations_for, verified_requests, with_changes
from tests.support.tiny_models import tiny_model_dir

NAMES = (
    "all at once, shuffled (1)", "all at once, shuffled (2)", "prefix cache cold", "prefix cache hit",
    "prefix cache off", "chunks of 16", "chunks of 64", "preempted",
)  # fmt: skip
SMALL = (
    "--dtype", "float32", "--device", "cpu", "--threads", "1", "--quiet", "--num-prompts", "2", "--prompt-len", "20:36",
    "--output-len", "17",
)  # fmt: skip


def verify(*words: object) -> int:
    """The exit code of `octavo verify` in this process."""
    try:
        return main(["verify", *map(str, words)])
    except SystemExit as exit:
        return int(exit.code or 0)


# --- the comparison ---------------------------------------------------------------------------------------------

ONE = Trace((5, 6, 7), (((5, -0.5), (9, -1.0)), ((6, -0.25), (5, -2.0)), ((7, -1.5), (6, -1.5))))
OTHER = Trace((1,), (((1, -3.0),),))


def with_entry(trace: Trace, position: int, index: int, entry: tuple[int, float]) -> Trace:
    """`trace` with one of its entries replaced."""
    logprobs = [list(at) for at in trace.logprobs]
    logprobs[position][index] = entry
    return replace(trace, logprobs=tuple(map(tuple, logprobs)))


def next_float(value: float) -> float:
    return math.nextafter(value, math.inf)


def test_equal_runs_are_equal():
    assert compare([ONE, OTHER], [ONE, OTHER]) == Comparison(2, 4, 7, 0, 0.0, None)
    nan = with_entry(ONE, 1, 1, (5, math.nan))
    assert compare([nan], [nan]).is_equal


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("index", [0, 1])
def test_the_last_bit_of_a_logprob_counts(position, index):
    token, logprob = ONE.logprobs[position][index]
    found = compare([OTHER, ONE], [OTHER, with_entry(ONE, position, index, (token, next_float(logprob)))])
    assert found.num_different == 1
    assert found.first is not None
    assert (found.first.sequence, found.first.position) == (1, position)
    assert found.first.tokens == (ONE.tokens[position],) * 2
    assert found.first.entries == ((token, logprob), (token, next_float(logprob)))
    assert found.largest_gap == next_float(logprob) - logprob > 0


@pytest.mark.parametrize(("one", "other"), [(0.0, -0.0), (math.nan, -math.nan), (-math.inf, math.nan)])
def test_floats_are_equal_when_their_bits_are(one, other):
    found = compare([with_entry(ONE, 0, 1, (9, one))], [with_entry(ONE, 0, 1, (9, other))])
    assert not found.is_equal
    assert hexadecimal(one) != hexadecimal(other)
    json.dumps(found.first.as_json() if found.first else None, allow_nan=False)


def test_another_token_is_seen_with_and_without_logprobs():
    other = Trace((5, 8, 7), (ONE.logprobs[0], ((8, -0.25), (5, -2.0)), ((7, -9.0), (6, -9.0))))
    found = compare([ONE], [other])
    assert found.first is not None
    assert (found.first.position, found.first.tokens) == (1, (6, 8))
    assert found.first.entries == ((6, -0.25), (8, -0.25))
    assert found.largest_gap == 0.0  # what comes after another token is another text
    bare = compare([Trace((5, 6), ())], [Trace((5, 8), ())])
    assert bare.first is not None
    assert (bare.first.position, bare.first.tokens, bare.first.entries) == (1, (6, 8), (None, None))


def test_a_shorter_run_and_fewer_logprobs_are_seen():
    short = compare([ONE], [Trace(ONE.tokens[:2], ONE.logprobs[:2])])
    assert short.first is not None
    assert (short.first.position, short.first.tokens, short.first.entries) == (2, (7, None), ((7, -1.5), None))
    longer = compare([Trace((), ())], [OTHER])
    assert longer.first is not None
    assert (longer.first.position, longer.first.tokens) == (0, (None, 1))
    fewer = compare([ONE], [replace(ONE, logprobs=(ONE.logprobs[0][:1], *ONE.logprobs[1:]))])
    assert fewer.first is not None
    assert fewer.first.entries == ((9, -1.0), None)


def test_a_difference_in_words_and_in_json():
    found = compare([OTHER], [with_entry(OTHER, 0, 0, (1, next_float(-3.0)))]).first
    assert found is not None
    assert "position 0: token 1 in both; logprobs -3.0 (0xc008000000000000) of 1 and -2.9" in str(found)
    plain = found.as_json()
    assert plain["logprob_bits"] == ["0xc008000000000000", "0xc007ffffffffffff"]
    assert (plain["position"], plain["tokens"], plain["logprobs_of"]) == (0, [1, 1], [1, 1])
    assert plain["logprobs"] == [-3.0, next_float(-3.0)]


@given(st.floats(allow_nan=True), st.floats(allow_nan=True))
def test_bits_tell_floats_apart_as_their_bytes_do(one, other):
    assert (bits(one) == bits(other)) == (struct.pack("<d", one) == struct.pack("<d", other))


# --- the settings -----------------------------------------------------------------------------------------------


def cases(count: int = 4):
    return verified_requests(
        generate_jobs(WorkloadSpec(count, LengthRange(24, 60), LengthRange(20, 20)), range(100)), seed=3
    )


def test_cases_are_greedy_and_seeded_with_logprobs():
    first, second, third, _ = cases(2)
    assert (first.sampling, first.params.temperature, second.sampling) == ("greedy", 0.0, "seeded")
    assert (second.params.temperature, second.params.seed, third.params.seed) == (1.0, 3, 4)
    assert first.token_ids == second.token_ids != third.token_ids
    assert all(case.params.logprobs and case.params.ignore_eos for case in cases())


def test_the_settings_are_those_of_the_contract():
    config = EngineConfig.from_fields(threads=3)
    found = variations_for(cases(), config, is_cpu=True, seed=0)
    names = [setting.name for setting in found]
    assert tuple(names[: len(NAMES)]) == NAMES
    assert names[len(NAMES)] == "threads 1"
    assert all(sorted(setting.order) == list(range(8)) for setting in found)
    assert found[0].order != found[1].order != tuple(range(8))
    assert len({str(setting.changes) for setting in found[:4]}) == 1  # one engine for four settings
    on_gpu = variations_for(cases(), config, is_cpu=False, seed=0)
    assert [setting.name for setting in on_gpu] == list(NAMES)


def test_changed_replaces_fields_and_keeps_the_rest():
    config = EngineConfig.from_fields(model="m", block_size=8, threads=2)
    assert with_changes(config, {"threads": 1}) == EngineConfig.from_fields(model="m", block_size=8, threads=1)


# --- the command, where company does not matter ------------------------------------------------------------------


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
        models.append(weakref.ref(engine.engine.runner.model))

    monkeypatch.setattr(LLMEngine, "__init__", counted)
    assert verify(small_model, *SMALL, "--num-prompts", 1) in (0, 1)
    assert len(models) == 6


# --- the command as it is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--num-prompts", "0"], ["--max-num-seqs", "4"], ["--prompt-len", "a"], ["a", "b"]])
def test_wrong_usage_is_2(words, capsys):
    assert verify(*words) == 2
    assert capsys.readouterr().out == ""


def test_a_model_that_is_not_there_is_66(capsys):
    assert verify("/no/such/model", "--quiet") == 66


def test_an_interrupt_is_130(tiny_model, monkeypatch, capsys):
    from octavo.llm_engine import LLMEngine

    step = LLMEngine.step

    def interrupted(engine):
        signal.raise_signal(signal.SIGINT)
        return step(engine)

    monkeypatch.setattr(LLMEngine, "step", interrupted)
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
