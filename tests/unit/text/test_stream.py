"""text.stream against naive oracles: whole decodes, and a search for stop strings in the whole text."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from octavo.text.stream import StopMatch, StreamOptions, TextStream
from octavo.text.tokenizer_gguf import tokenizer_from_gguf
from octavo.weights.open import open_checkpoint

MARK = "\ufffd"
FAMILY = (
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f44d\U0001f3fd"
)
TEXTS = [
    "The capital of France is Paris, isn't it?", " a  b   c\n\n\td ", FAMILY, "สวัสดีครับ ภาษาไทย", "日本語と漢字𠮷野家",
    "naïve café – “quotes” … €", "한국어 텍스트", "مرحبا بالعالم", "x" * 30, '{"a": [1, 2]}\n```', MARK,
    "\x00\x7f\u0301\u200d",
]  # fmt: skip
RUBBISH = [b"\xff", b"\xe2", b"\xe2\x82", b"\x80", b"\xf0\x9f\x92", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90", b"\xc0\xaf"]


@dataclass
class Vocabulary:
    """A real tokenizer as the stream sees it; counts the ids it is asked to decode."""

    inner: tokenizers.Tokenizer
    byte_ids: list[int]
    special_ids: list[int]
    num_decoded: int = 0

    def decode(self, ids: Sequence[int], *, skip_special: bool = True, spaces_between_special: bool = True) -> str:
        self.num_decoded += len(ids)
        text = self.inner.decode(list(ids), skip_special_tokens=skip_special)
        assert isinstance(text, str)
        return text

    def encode(self, text: str) -> list[int]:
        return list(self.inner.encode(text, add_special_tokens=False).ids)

    def bytes_to_ids(self, data: bytes) -> list[int]:
        return [self.byte_ids[byte] for byte in data]


def merges_of(words: Sequence[str], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Grow `vocab` so that each word's pieces merge left to right, two by two."""
    merges = []
    for word in words:
        pieces = list(word)
        while len(pieces) > 1:
            pairs = [pieces[i : i + 2] for i in range(0, len(pieces), 2)]
            for pair in pairs:
                if len(pair) == 2 and (pair[0], pair[1]) not in merges:
                    merges.append((pair[0], pair[1]))
                    vocab.setdefault("".join(pair), len(vocab))
            pieces = ["".join(pair) for pair in pairs]
    return merges


@pytest.fixture(scope="module")
def byte_level() -> Vocabulary:
    """Byte-level BPE whose longer tokens begin and end anywhere, also inside characters."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    shown = [split.pre_tokenize_str(text)[0][0] for text in TEXTS]
    words = [text[i : i + 5] for text in shown for i in range(0, len(text), 3)]
    merges = merges_of(words, vocab)
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = split
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    # GPT-2's table: printable bytes stand for themselves, the rest for the characters from 256 on
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    shown_byte = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
    byte_ids = [vocab[shown_byte[byte]] for byte in range(256)]
    return Vocabulary(inner, byte_ids, [len(vocab), len(vocab) + 1])


def sentencepiece_like(decoder: decoders.Decoder) -> Vocabulary:
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for char in "▁" + "".join(sorted({char for text in TEXTS[:2] + TEXTS[4:6] for char in text if char > " "})):
        vocab.setdefault(char, len(vocab))
    merges = merges_of(["▁▁▁▁", "▁The", "▁capital", "▁is", "▁a", "▁Par", "日本語"], vocab)
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    inner.decoder = decoder
    inner.add_special_tokens(["<s>", "</s>"])
    return Vocabulary(inner, list(range(3, 259)), [1, 2])


@pytest.fixture(scope="module")
def llama_like() -> Vocabulary:
    strip = decoders.Strip(content=" ", left=1, right=0)
    chain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    return sentencepiece_like(decoders.Sequence(chain))


@pytest.fixture(scope="module")
def metaspace_like() -> Vocabulary:
    return sentencepiece_like(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]))


@dataclass(frozen=True)
class Case:
    """A sequence as the generators think of it; `ids` needs a vocabulary."""

    segments: tuple[tuple[str, object], ...]
    prompt_cut: float
    pushes: tuple[int, ...]
    skip_special: bool

    def ids(self, vocabulary: Vocabulary) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        for kind, value in self.segments:
            match kind, value:
                case "text", str():
                    ids += vocabulary.encode(value)
                case "bytes", bytes():
                    ids += vocabulary.bytes_to_ids(value)
                case "ids", [*values]:
                    ids += [value % vocabulary.inner.get_vocab_size() for value in values]
                case "special", int():
                    ids.append(vocabulary.special_ids[value % 2])
        cut = round(self.prompt_cut * len(ids))
        return ids[:cut], ids[cut:]


def slices(text: str) -> st.SearchStrategy[str]:
    return st.tuples(st.integers(0, len(text)), st.integers(1, 12)).map(lambda at: text[at[0] : at[0] + at[1]])


texts = st.sampled_from(TEXTS).flatmap(slices) | st.sampled_from(TEXTS)
valid = st.one_of(
    st.tuples(st.just("text"), texts),
    st.tuples(st.just("bytes"), texts.map(str.encode)),
    st.tuples(st.just("special"), st.integers(0, 1)),
)
anything = st.one_of(
    valid,
    st.tuples(
        st.just("bytes"), st.builds(lambda data, times: data * times, st.sampled_from(RUBBISH), st.integers(1, 14))
    ),
    st.tuples(st.just("bytes"), texts.map(lambda text: text.encode()[1:-1])),
    st.tuples(st.just("bytes"), st.binary(max_size=24)),
    st.tuples(st.just("ids"), st.lists(st.integers(0, 100_000), max_size=12)),
)


def cases(segments: st.SearchStrategy[tuple[str, object]]) -> st.SearchStrategy[Case]:
    return st.builds(
        Case,
        segments=st.lists(segments, max_size=8).map(tuple),
        prompt_cut=st.floats(0, 1),
        pushes=st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple).filter(any),
        skip_special=st.booleans(),
    )


def sized(num_examples: int) -> Callable[..., settings]:
    return settings(max_examples=num_examples, deadline=None, suppress_health_check=list(HealthCheck))


def run(
    vocabulary: Vocabulary, prompt: list[int], output: list[int], options: StreamOptions, pushes: Sequence[int]
) -> tuple[str, list[str], StopMatch | None]:
    """The stream's text, its deltas and the stop it found; ids go in by `pushes`, round and round."""
    stream = TextStream(vocabulary, prompt, options)
    deltas, at, turn, found = [], 0, 0, None
    while found is None:
        num_ids = pushes[turn % len(pushes)]
        turn += 1
        finished = at + num_ids >= len(output)
        step = stream.push(output[at : at + num_ids], finished=finished)
        at += num_ids
        deltas.append(step.delta)
        found = step.stop
        if finished:
            break
    assert "".join(deltas) == stream.text
    return stream.text, deltas, found


def oracle(vocabulary: Vocabulary, output: list[int], options: StreamOptions) -> tuple[str, StopMatch | None]:
    """Quadratic and plain: decode everything after each token, then look at every end of the text in turn."""
    full = vocabulary.decode(output, skip_special=options.skip_special)
    born: list[int] = []  # number of tokens with which each character was certain
    for num_tokens in range(1, len(output) + 1):
        text = vocabulary.decode(output[:num_tokens], skip_special=options.skip_special)
        certain = max(len(text.rstrip(MARK)), len(text) - 3)
        born += [num_tokens] * (certain - len(born))
    born += [len(output)] * (len(full) - len(born))
    for end in range(1, len(full) + 1):
        hits = [stop for stop in options.stop if full[:end].endswith(stop)]
        if hits and born[end - 1] >= options.min_tokens:
            stop = max(hits, key=len)
            text = full[: end if options.include_stop else end - len(stop)]
            return text, StopMatch(stop, born[end - 1])
    return full, None


def check_byte_level(vocabulary: Vocabulary, case: Case) -> None:
    prompt, output = case.ids(vocabulary)
    options = StreamOptions(skip_special=case.skip_special)
    text, deltas, found = run(vocabulary, prompt, output, options, case.pushes)
    full = vocabulary.decode(output, skip_special=case.skip_special)
    assert (text, found) == (full, None)
    at = 0
    for delta in deltas:  # a mark comes out early only where the whole text has one
        assert full[at : at + len(delta)] == delta
        at += len(delta)


def check_stops(vocabulary: Vocabulary, case: Case, options: StreamOptions) -> None:
    prompt, output = case.ids(vocabulary)
    text, _, found = run(vocabulary, prompt, output, options, case.pushes)
    assert (text, found) == oracle(vocabulary, output, options)


@st.composite
def stop_options(draw: st.DrawFn) -> tuple[Case, StreamOptions]:
    case = draw(cases(anything))
    source = "".join(value for kind, value in case.segments if isinstance(value, str)) or "abc"
    piece = slices(source).filter(bool) | st.sampled_from([" ", "a", MARK, MARK * 2, "aab", "ab", "\n"])
    near = piece.map(lambda text: text + "!")  # a near miss
    options = StreamOptions(
        stop=tuple(draw(st.lists(piece | near, min_size=1, max_size=5))),
        include_stop=draw(st.booleans()),
        min_tokens=draw(st.sampled_from([0, 0, 1, 2, 5, 20])),
        skip_special=case.skip_special,
    )
    return case, options


def check_sentencepiece(vocabulary: Vocabulary, case: Case) -> None:
    prompt, output = case.ids(vocabulary)
    options = StreamOptions(skip_special=case.skip_special)
    text, _, _ = run(vocabulary, prompt, output, options, case.pushes)
    assert run(vocabulary, prompt, output, options, [1])[0] == text
    assert run(vocabulary, prompt, output, options, [max(1, len(output))])[0] == text
    before = vocabulary.decode(prompt, skip_special=case.skip_special)
    full = vocabulary.decode(prompt + output, skip_special=case.skip_special)
    if full.startswith(before) and MARK not in full:
        assert text == full[len(before) :]
    if MARK not in vocabulary.decode(output, skip_special=case.skip_special):
        assert MARK not in text


@given(case=cases(anything))
@sized(700)
def test_byte_level_text_is_the_whole_decode(byte_level: Vocabulary, case: Case) -> None:
    check_byte_level(byte_level, case)


@given(drawn=stop_options())
@sized(500)
def test_stop_strings_are_those_of_the_plain_search(byte_level: Vocabulary, drawn: tuple[Case, StreamOptions]) -> None:
    check_stops(byte_level, *drawn)


@given(case=cases(anything))
@sized(200)
def test_llama_like_text_is_what_the_output_adds(llama_like: Vocabulary, case: Case) -> None:
    check_sentencepiece(llama_like, case)


@given(case=cases(valid))
@sized(200)
def test_metaspace_text_is_what_the_output_adds(metaspace_like: Vocabulary, case: Case) -> None:
    check_sentencepiece(metaspace_like, case)


@pytest.mark.slow
@given(case=cases(anything), drawn=stop_options())
@sized(10_000)
def test_sweep_byte_level(byte_level: Vocabulary, case: Case, drawn: tuple[Case, StreamOptions]) -> None:
    check_byte_level(byte_level, case)
    check_stops(byte_level, *drawn)


@pytest.mark.slow
@given(case=cases(anything), other=cases(valid))
@sized(5_000)
def test_sweep_sentencepiece(llama_like: Vocabulary, metaspace_like: Vocabulary, case: Case, other: Case) -> None:
    for vocabulary in (llama_like, metaspace_like):
        check_sentencepiece(vocabulary, case)
        check_sentencepiece(vocabulary, other)


@pytest.mark.parametrize("cut", range(1, 4))
def test_prompt_that_ends_inside_a_character_leaks_nothing(byte_level: Vocabulary, cut: int) -> None:
    ids = byte_level.bytes_to_ids("see 👍 there".encode())
    prompt, output = ids[: 4 + cut], ids[4 + cut :]
    text, deltas, _ = run(byte_level, prompt, output, StreamOptions(), [1])
    assert text == byte_level.decode(output) == MARK * (4 - cut) + " there"
    assert "see" not in deltas[0]


def test_a_character_comes_with_its_last_byte(byte_level: Vocabulary, llama_like: Vocabulary) -> None:
    for vocabulary in (byte_level, llama_like):
        _, deltas, _ = run(vocabulary, [], vocabulary.bytes_to_ids("é€👍".encode()), StreamOptions(), [1])
        assert [delta for delta in deltas if delta] == ["é", "€", "👍"]
        assert [bool(delta) for delta in deltas] == [False, True, False, False, True, False, False, False, True]


def test_sentencepiece_keeps_the_space_after_a_prompt_only(llama_like: Vocabulary) -> None:
    ids = llama_like.encode("The capital")
    assert run(llama_like, [1], ids, StreamOptions(), [1])[0] == "The capital"
    assert run(llama_like, ids, ids, StreamOptions(), [1])[0] == " The capital"
    assert run(llama_like, [*ids, 2, 2, 2], ids, StreamOptions(), [1])[0] == " The capital"
    output = [*ids, *[2] * 20, *ids]  # skipped tokens are no context
    assert (
        run(llama_like, [], output, StreamOptions(), [1])[0] == llama_like.decode(output) == "The capital The capital"
    )


def test_a_lone_space_byte_is_context_enough(llama_like: Vocabulary) -> None:
    ids = llama_like.bytes_to_ids(TEXTS[2].encode())
    for cut in (0, 25):
        output = llama_like.bytes_to_ids(b" ") * (cut == 0) + ids[cut:]
        text, _, _ = run(llama_like, ids[:cut], output, StreamOptions(), [1])
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
            found = run(byte_level, [], ids, StreamOptions(stop=stops), pushes)
            assert (found[0], found[2]) == (text, StopMatch(stop, 4))


def test_a_stop_before_min_tokens_does_not_count(byte_level: Vocabulary) -> None:
    ids = byte_level.bytes_to_ids(b"a.b.c.")
    for min_tokens, text, num_tokens in ((2, "a", 2), (3, "a.b", 4), (6, "a.b.c", 6)):
        options = StreamOptions(stop=(".",), min_tokens=min_tokens)
        found = run(byte_level, [], ids, options, [1])
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
        run(vocabulary, vocabulary.encode("a"), output, StreamOptions(), [1])
        assert vocabulary.num_decoded <= 40 * len(output)


def straddling_id(vocabulary: Vocabulary) -> int:
    """A token that begins and ends inside a character, so that no token boundary is ever clean."""
    for token_id in range(vocabulary.inner.get_vocab_size()):
        text = vocabulary.decode([token_id] * 3)
        if text.startswith(MARK) and text.endswith(MARK) and text.strip(MARK):
            return token_id
    raise AssertionError("the fixture has no such token")


def test_near_misses_cost_at_most_as_much_again(byte_level: Vocabulary) -> None:
    ids = byte_level.encode("x" * 30) * 300
    stops = tuple("x" * (255 - i) + "y" for i in range(16))

    def seconds(options: StreamOptions) -> float:
        stream = TextStream(byte_level, [], options)
        start = time.process_time()
        for token_id in ids:
            stream.push([token_id], finished=False)
        return time.process_time() - start

    plain = min(seconds(StreamOptions()) for _ in range(5))
    assert min(seconds(StreamOptions(stop=stops)) for _ in range(5)) <= 2 * plain


def test_fixtures_are_what_they_claim(byte_level: Vocabulary, llama_like: Vocabulary) -> None:
    assert json.loads(byte_level.inner.to_str())["decoder"]["type"] == "ByteLevel"
    for text in TEXTS:
        assert byte_level.decode(byte_level.encode(text)) == text
        assert byte_level.decode(byte_level.bytes_to_ids(text.encode())) == text
        assert llama_like.decode(llama_like.bytes_to_ids(text.encode())).lstrip(" ") == text.lstrip(" ")
    lengths = {len(byte_level.encode(text)) / len(text.encode()) for text in TEXTS}
    assert min(lengths) < 0.5  # longer tokens are really used
    assert MARK in byte_level.decode([straddling_id(byte_level)])


def test_octavos_own_tokenizer_streams_what_it_decodes(smollm2_path: Path) -> None:
    checkpoint = open_checkpoint(smollm2_path)
    tokenizer = tokenizer_from_gguf(checkpoint.metadata)
    checkpoint.close()
    prompt = tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    for skip_special in (True, False):
        options = StreamOptions(skip_special=skip_special)
        for output in (tokenizer.encode(" ".join(TEXTS) + "<|im_end|>"), list(range(0, tokenizer.vocab_size, 7))):
            for cut in (0, 3, len(prompt)):
                stream = TextStream(tokenizer, prompt[:cut], options)
                for token_id in output[:-1]:
                    stream.push([token_id], finished=False)
                stream.push(output[-1:], finished=True)
                assert stream.text == tokenizer.decode(output, skip_special=skip_special)
