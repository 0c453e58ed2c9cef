"""serve.api.logprobs on outputs made by hand: both shapes, parts of characters, and what JSON cannot write."""

import math

import pytest

from octavo.outputs import Logprob
from octavo.serve.api.logprobs import (
    LogprobFormatter,
    finite,
    output_positions,
    prompt_logprobs,
    prompt_positions,
)
from tests.support.outputs import CharTokenizer, make_logprobs, make_output


class ByteTokenizer(CharTokenizer):
    """A token is a byte."""

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


def formatter(num_top: int = 1, tokenizer=None, *, skips_special: bool = True) -> LogprobFormatter:
    return LogprobFormatter(tokenizer or CharTokenizer(), num_top, skips_special=skips_special)


def test_the_shape_of_chats():
    positions = output_positions(make_output("ab", has_logprobs=True), 1)
    assert formatter(2).chat(positions) == {
        "content": [
            {
                "token": "b", "logprob": -1.0, "bytes": [98],
                "top_logprobs": [
                    {"token": "b", "logprob": -1.0, "bytes": [98]}, {"token": "c", "logprob": -2.0, "bytes": [99]},
                ],
            }
        ],
        "refusal": None,
    }  # fmt: skip
    assert formatter(0).chat(positions)["content"][0]["top_logprobs"] == []


def test_the_chosen_token_is_among_the_top_only_where_it_belongs():
    at = {1: Logprob(-3.0, 3, "x"), 2: Logprob(-1.0, 1, "y"), 3: Logprob(-1.0, 1, "z"), 4: Logprob(-1.0, 2, "w")}
    [entry] = formatter(3).chat([(1, at)])["content"]
    assert entry["token"] == "x"
    assert [top["token"] for top in entry["top_logprobs"]] == ["y", "z", "w"]


def test_the_legacy_shape_counts_on():
    output = make_output("é!", has_logprobs=True, prompt_logprobs=[None, make_logprobs(98)])
    once, formatted = formatter(), formatter()
    both = once.legacy(0, [*prompt_positions(output), *output_positions(output, 0)])
    assert both == {
        "tokens": ["a", "b", "é", "!"],
        "token_logprobs": [None, -1.0, -1.0, -1.0],
        "top_logprobs": [None, {"b": -1.0}, {"é": -1.0}, {"!": -1.0}],
        "text_offset": [0, 1, 2, 3],
    }
    parts = [formatted.legacy(0, part) for part in (prompt_positions(output), output_positions(output, 0))]
    assert [*parts[0]["text_offset"], *parts[1]["text_offset"]] == both["text_offset"]
    assert formatted.legacy(1, prompt_positions(output))["text_offset"] == [0, 1]


def test_positions_end_where_either_does():
    assert prompt_positions(make_output(prompt_logprobs=None)) == [(97, None), (98, None)]
    assert prompt_positions(make_output(prompt_logprobs=[None])) == [(97, None), (98, None)]
    assert prompt_positions(make_output(prompt_logprobs=[None] * 3)) == [(97, None), (98, None)]
    assert output_positions(make_output("ab"), 0) == []


def test_a_part_of_a_character_has_a_label_of_its_own():
    positions = output_positions(make_output("\xc3\xa9!", has_logprobs=True), 0)
    table = formatter(0, ByteTokenizer()).legacy(0, positions)
    assert table["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "!"]
    assert table["text_offset"] == [0, 0, 1]


def test_a_special_token_has_no_length_where_the_text_is_without_it():
    positions = output_positions(make_output("\0a\0b", has_logprobs=True), 0)
    assert formatter().legacy(0, positions)["text_offset"] == [0, 0, 1, 1]
    assert formatter(skips_special=False).legacy(0, positions)["text_offset"] == [0, 1, 2, 3]


def test_those_of_a_prompt():
    assert prompt_logprobs(make_output(prompt_logprobs=None)) == []
    assert prompt_logprobs(make_output(prompt_logprobs=[None, {98: Logprob(-math.inf, 9, None)}])) == [
        None, {"98": {"logprob": -9999.0, "rank": 9, "decoded_token": None}},
    ]  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), [(-1.5, -1.5), (-math.inf, -9999.0), (math.nan, -9999.0), (0.0, 0.0)])
def test_json_has_finite_numbers_only(given, expected):
    assert finite(given) == expected
