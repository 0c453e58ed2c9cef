"""The comparison of two runs, by differences made by hand."""

import json
import math
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.tools.verify.compare import Comparison, Trace, bits, compare, hexadecimal

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
