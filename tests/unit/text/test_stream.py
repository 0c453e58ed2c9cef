"""The text of streams against naive oracles (whole decodes, a plain search for stop strings), then one case at a time.

Many more random sequences are in tests/nightly.
"""

import json
import time

import pytest
from hypothesis import given

from octavo.text.stream import StopMatch, StreamOptions, TextStream
from tests.support.text_streams import (
    MARK,
    TEXTS,
    Case,
    Vocabulary,
    anything,
    byte_level_vocabulary,
    cases,
    check_byte_level,
    check_sentencepiece,
    check_stops,
    llama_like_vocabulary,
    metaspace_like_vocabulary,
    sized,
    stop_options,
    streamed,
    valid,
)


@pytest.fixture(scope="module")
def byte_level() -> Vocabulary:
    return byte_level_vocabulary()


@pytest.fixture(scope="module")
def llama_like() -> Vocabulary:
    return llama_like_vocabulary()


@pytest.fixture(scope="module")
def metaspace_like() -> Vocabulary:
    return metaspace_like_vocabulary()


@given(case=cases(anything))
@sized(150)
def test_byte_level_text_is_the_whole_decode(byte_level: Vocabulary, case: Case) -> None:
    check_byte_level(byte_level, case)


@given(drawn=stop_options())
@sized(100)
def test_stop_strings_are_those_of_the_plain_search(byte_level: Vocabulary, drawn: tuple[Case, StreamOptions]) -> None:
    check_stops(byte_level, *drawn)


@given(case=cases(anything))
@sized(80)
def test_llama_like_text_is_what_the_output_adds(llama_like: Vocabulary, case: Case) -> None:
    check_sentencepiece(llama_like, case)


@given(case=cases(valid))
@sized(80)
def test_metaspace_text_is_what_the_output_adds(metaspace_like: Vocabulary, case: Case) -> None:
    check_sentencepiece(metaspace_like, case)


@pytest.mark.parametrize("cut", range(1, 4))
def test_prompt_that_ends_inside_a_character_leaks_nothing(byte_level: Vocabulary, cut: int) -> None:
    ids = byte_level.bytes_to_ids("see 👍 there".encode())
    prompt, output = ids[: 4 + cut], ids[4 + cut :]
    text, deltas, _ = streamed(byte_level, prompt, output, StreamOptions(), [1])
    assert text == byte_level.decode(output) == MARK * (4 - cut) + " there"
    assert "see" not in deltas[0]


def test_a_character_comes_with_its_last_byte(byte_level: Vocabulary, llama_like: Vocabulary) -> None:
    for vocabulary in (byte_level, llama_like):
        _, deltas, _ = streamed(vocabulary, [], vocabulary.bytes_to_ids("é€👍".encode()), StreamOptions(), [1])
        assert [delta for delta in deltas if delta] == ["é", "€", "👍"]
        assert [bool(delta) for delta in deltas] == [False, True, False, False, True, False, False, False, True]


def test_sentencepiece_keeps_the_space_after_a_prompt_only(llama_like: Vocabulary) -> None:
    ids = llama_like.encode("The capital")
    assert streamed(llama_like, [1], ids, StreamOptions(), [1])[0] == "The capital"
    assert streamed(llama_like, ids, ids, StreamOptions(), [1])[0] == " The capital"
    assert streamed(llama_like, [*ids, 2, 2, 2], ids, StreamOptions(), [1])[0] == " The capital"
    output = [*ids, *[2] * 20, *ids]  # skipped tokens are no context
    assert (
        streamed(llama_like, [], output, StreamOptions(), [1])[0]
        == llama_like.decode(output)
        == "The capital The capital"
    )


def test_a_lone_space_byte_is_context_enough(llama_like: Vocabulary) -> None:
    ids = llama_like.bytes_to_ids(TEXTS[2].encode())
    for cut in (0, 25):
        output = llama_like.bytes_to_ids(b" ") * (cut == 0) + ids[cut:]
        text, _, _ = streamed(llama_like, ids[:cut], output, StreamOptions(), [1])
        assert text == (TEXTS[2][7:] if cut else TEXTS[2])


def test_finished_gives_out_what_was_held(byte_level: Vocabulary) -> None:
    stream = TextStream(byte_level, [], StreamOptions(stop=("STOP",)))
    assert stream.push(byte_level.encode("a ST"), finished=False).delta == "a "
    assert stream.push(byte_level.bytes_to_ids(b"O\xe2\x82"), finished=False).delta == ""
    assert stream.push([], finished=True).delta == "STO" + MARK
    assert stream.text == "a STO" + MARK


def test_ids_after_a_stop_are_dropped(byte_level: Vocabulary) -> None:
    ids = byte_level.bytes_to_ids(b"one.two")
    for include, text in ((False, "one"), (True, "one.")):
        stream = TextStream(byte_level, [], StreamOptions(stop=(".",), include_stop=include))
        step = stream.push(ids, finished=True)
        assert (step.delta, step.stop) == (text, StopMatch(".", 4))


def test_first_complete_stop_wins_then_the_longest(byte_level: Vocabulary) -> None:
    ids = byte_level.bytes_to_ids(b"xabcd")
    for stops, text, stop in ((("abcd", "bc"), "xa", "bc"), (("c", "abc", "bc"), "x", "abc")):
        for pushes in ([1], [5]):
            found = streamed(byte_level, [], ids, StreamOptions(stop=stops), pushes)
            assert (found[0], found[2]) == (text, StopMatch(stop, 4))


def test_a_stop_before_min_tokens_does_not_count(byte_level: Vocabulary) -> None:
    ids = byte_level.bytes_to_ids(b"a.b.c.")
    for min_tokens, text, num_tokens in ((2, "a", 2), (3, "a.b", 4), (6, "a.b.c", 6)):
        options = StreamOptions(stop=(".",), min_tokens=min_tokens)
        found = streamed(byte_level, [], ids, options, [1])
        assert (found[0], found[2]) == (text, StopMatch(".", num_tokens))
    # a whole stop string that came too early is given out at once, unless a longer one may grow from it
    stream = TextStream(byte_level, [], StreamOptions(stop=("ab", "bcd"), min_tokens=10))
    assert stream.push(byte_level.bytes_to_ids(b"xab"), finished=False).delta == "xa"
    assert stream.push(byte_level.bytes_to_ids(b"."), finished=False).delta == "b."


@pytest.mark.parametrize("kind", ["text", "rubbish", "marks", "straddling", "skipped"])
def test_each_id_is_decoded_a_bounded_number_of_times(
    byte_level: Vocabulary, llama_like: Vocabulary, kind: str
) -> None:
    data = {"text": "สวัสดี there ".encode(), "rubbish": b"\xe2\xff\xf0\x9f", "marks": MARK.encode(), "straddling": b""}
    for vocabulary in (byte_level, llama_like):
        ids = vocabulary.special_ids if kind == "skipped" else vocabulary.bytes_to_ids(data[kind]) or [5]
        if kind == "straddling" and vocabulary is byte_level:
            ids = [straddling_id(vocabulary)]
        output = (ids * 3000)[:3000]
        vocabulary.num_decoded = 0
        streamed(vocabulary, vocabulary.encode("a"), output, StreamOptions(), [1])
        assert vocabulary.num_decoded <= 40 * len(output)


def straddling_id(vocabulary: Vocabulary) -> int:
    """A token that begins and ends inside a character, so that no token boundary is ever clean."""
    for token_id in range(vocabulary.inner.get_vocab_size()):
        text = vocabulary.decode([token_id] * 3)
        if text.startswith(MARK) and text.endswith(MARK) and text.strip(MARK):
            return token_id
    raise AssertionError("the fixture has no such token")


@pytest.mark.timed
@pytest.mark.timed
def test_near_misses_cost_at_most_as_much_again(byte_level: Vocabulary) -> None:
    ids = byte_level.encode("x" * 30) * 300
    stops = tuple("x" * (255 - i) + "y" for i in range(16))

    def seconds(options: StreamOptions) -> float:
        stream = TextStream(byte_level, [], options)
        start = time.process_time()
        for token_id in ids:
            stream.push([token_id], finished=False)
        return time.process_time() - start

    # In turns: a shared machine's clock may change to half between one run and the next.
    ratios = [seconds(StreamOptions(stop=stops)) / seconds(StreamOptions()) for _ in range(9)]
    assert sorted(ratios)[4] <= 2


def test_fixtures_are_what_they_claim(byte_level: Vocabulary, llama_like: Vocabulary) -> None:
    assert json.loads(byte_level.inner.to_str())["decoder"]["type"] == "ByteLevel"
    for text in TEXTS:
        assert byte_level.decode(byte_level.encode(text)) == text
        assert byte_level.decode(byte_level.bytes_to_ids(text.encode())) == text
        assert llama_like.decode(llama_like.bytes_to_ids(text.encode())).lstrip(" ") == text.lstrip(" ")
    lengths = {len(byte_level.encode(text)) / len(text.encode()) for text in TEXTS}
    assert min(lengths) < 0.5  # longer tokens are really used
    assert MARK in byte_level.decode([straddling_id(byte_level)])
