"""The same request gives the same tokens and the same bits of their log-probabilities in any company, any chunks, with
and without the prefix cache, preempted or not, on any number of threads: CONTRACT of the CPU backend, on whole engines.

A request alone is the measure of all other settings. A part of the sweep is here, all of it in tests/nightly.
"""

from dataclasses import replace

import numpy as np
import pytest

from octavo.models.load import read_arch
from octavo.ops import cpu
from octavo.ops.cpu.graph import Program
from octavo.ops.cpu.operations import Logits
from octavo.tools.verify.compare import Trace
from tests.support.equalities import HELD, Setting, alone_of, check_bits, engine_of, requests, some_settings, together


@pytest.fixture(scope="module")
def work(tiny_model):
    return requests(read_arch(tiny_model).vocab_size)


@pytest.fixture(scope="module", params=HELD)
def dtype(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def alone(tiny_model, work, dtype) -> list[Trace]:
    return alone_of(tiny_model, work, dtype)


@pytest.mark.parametrize(("setting", "seed"), some_settings(), ids=str)
def test_bits_are_those_of_each_request_alone(tiny_model, work, alone, dtype, setting, seed):
    """All settings in float32 and bfloat16, every second one where numbers are held in few bits."""
    if "int" in dtype and some_settings().index((setting, seed)) % 2 == list(HELD).index(dtype) % 2:
        pytest.skip("every second setting; all of them are tried at night")
    check_bits(engine_of(tiny_model, dtype, setting), setting, work, alone, [seed])


# --- the comparison has teeth -------------------------------------------------------------------------------------

WHOLE = Setting(None, caching=False, is_tight=False, threads=2)


def next_up(values: np.ndarray) -> None:
    np.nextafter(values, np.float32(np.inf), out=values)


def nudge_large_steps(monkeypatch, engine) -> None:
    """Half of the hidden state is off by 2^-9 in steps of more than 64 tokens: less would get lost in bfloat16."""
    original = Program.run

    def nosy(program):
        num_rows = original(program)
        if num_rows > 64:
            program.native.view(program.out, num_rows)[:, ::2] *= np.float32(1 + 2**-9)
        return num_rows

    monkeypatch.setattr(Program, "run", nosy)


def nudge_one_logit(monkeypatch, engine) -> None:
    """The largest logit of the last row of several is the next float32."""
    original = Logits.read

    def nosy(logits):
        out = original(logits)
        if len(out) > 1:
            at = int(out[-1].argmax())
            next_up(out[-1, at : at + 1])
        return out

    monkeypatch.setattr(Logits, "read", nosy)


def halve_sums(monkeypatch, engine) -> None:
    """The head's sums are made of two halves where there are several rows."""
    original, runner = Logits.read, engine._engine.runner
    head = runner.model.weights.head
    vocab = np.arange(head.native.num_out, dtype=np.int32)
    weights = cpu.download(cpu.embed(head, cpu.plan_tokens(head.device, vocab)))

    def nosy(logits):
        out = original(logits)
        if len(out) > 1:
            norm, program = logits.norm, logits.hidden.program
            hidden = np.array(program.read(logits.hidden.num_rows)[logits.rows])
            x = cpu.download(cpu.rms_norm(cpu.upload(head.device, hidden), norm.weight, norm.eps))
            half = x.shape[1] // 2
            out[:] = x[:, :half] @ weights[:, :half].T + x[:, half:] @ weights[:, half:].T
        return out

    monkeypatch.setattr(Logits, "read", nosy)


@pytest.mark.parametrize("fault", [nudge_large_steps, nudge_one_logit, halve_sums])
def test_what_depends_on_the_company_is_found(tiny_model, work, alone, dtype, fault, monkeypatch):
    engine = engine_of(tiny_model, dtype, WHOLE)
    assert together(engine, work, alone, 1).is_equal
    fault(monkeypatch, engine)
    found = together(engine, work, alone, 1)
    assert not found.is_equal
    # Halved sums are of inputs that nobody rounds to codes or to bfloat16: some 0.1 in a log-probability.
    assert 0 < found.largest_gap < 0.2, "a rounding error, no more"


def test_a_fault_in_large_steps_is_not_seen_in_small_ones(tiny_model, work, alone, dtype, monkeypatch):
    engine = engine_of(tiny_model, dtype, replace(WHOLE, budget=64))
    nudge_large_steps(monkeypatch, engine)
    assert together(engine, work, alone, 1).is_equal
