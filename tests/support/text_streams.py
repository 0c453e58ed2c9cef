"""Small vocabularies, random sequences of their tokens, and naive oracles for the text that a stream makes of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tokenizers
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from octavo.text.stream import StopMatch, StreamOptions, TextStream

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


def byte_level_vocabulary() -> Vocabulary:
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


def llama_like_vocabulary() -> Vocabulary:
    """SentencePiece as Llama has it: byte fallback, one leading space stripped."""
    strip = decoders.Strip(content=" ", left=1, right=0)
    chain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    return sentencepiece_like(decoders.Sequence(chain))


def metaspace_like_vocabulary() -> Vocabulary:
    """SentencePiece with the metaspace decoder."""
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


def streamed(
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
    text, deltas, found = streamed(vocabulary, prompt, output, options, case.pushes)
    full = vocabulary.decode(output, skip_special=case.skip_special)
    assert (text, found) == (full, None)
    at = 0
    for delta in deltas:  # a mark comes out early only where the whole text has one
        assert full[at : at + len(delta)] == delta
        at += len(delta)


def check_stops(vocabulary: Vocabulary, case: Case, options: StreamOptions) -> None:
    prompt, output = case.ids(vocabulary)
    text, _, found = streamed(vocabulary, prompt, output, options, case.pushes)
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
    text, _, _ = streamed(vocabulary, prompt, output, options, case.pushes)
    assert streamed(vocabulary, prompt, output, options, [1])[0] == text
    assert streamed(vocabulary, prompt, output, options, [max(1, len(output))])[0] == text
    before = vocabulary.decode(prompt, skip_special=case.skip_special)
    full = vocabulary.decode(prompt + output, skip_special=case.skip_special)
    if full.startswith(before) and MARK not in full:
        assert text == full[len(before) :]
    if MARK not in vocabulary.decode(output, skip_special=case.skip_special):
        assert MARK not in text
