"""The lazy backend: whatever it is asked, it answers as the whole tokenizer does, from a part of the vocabulary."""

import random
import struct
import time

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from octavo.errors import ModelFormatError, RequestError
from octavo.packed_strings import PackedStrings
from octavo.text import lazy_backend, tokenizer_gguf
from octavo.text._vocabulary import Vocabulary
from octavo.text.lazy_backend import MAX_PART_BYTES, MAX_PARTS, LazyBackend, PackedTokens
from octavo.text.tokenizer import Tokenizer, byte_alphabet
from octavo.weights import _convert

SPECIAL = ["<|begin|>", "<|end|>", "<user>"]
TYPES = {"<|begin|>": 3, "<|end|>": 3, "<user>": 4}
WORDS = "the cat sat on mat the hat then a cathedral theatre matte über naïve 東京 東 12 123 1234 !!! \n\n  \t".split(
    " "
)


def packed(strings: list[str]) -> PackedStrings:
    encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
    data = b"".join(struct.pack("<Q", len(one)) + one for one in encoded)

    def split(data: bytes, start: int, count: int) -> list[str]:
        found, _ = _convert.split_strings(data, start, count, 1 << 20)
        return found

    return PackedStrings(
        data, len(strings), split, lambda data, count: _convert.skip_strings(data, 0, count, 1 << 20)[1]
    )


def packed_tokens(tokens: list[str], merges: list[str]) -> PackedTokens:
    return PackedTokens(packed(tokens).data, len(tokens), packed(merges).data, len(merges))


def random_vocabulary(seed: int, num_merges: int = 300, lacking: bytes = b"") -> tuple[list[str], list[str]]:
    """Bytes, and what merging random neighbors of random words makes of them; as if there were none of `lacking`."""
    rng = random.Random(seed)
    spell = {byte: char for char, byte in byte_alphabet().items() if byte not in lacking}
    tokens, merges = [*SPECIAL, *spell.values()], []
    rng.shuffle(tokens)
    known = set(tokens)
    plain = [token for token in tokens if token not in TYPES]
    spelled = ["".join(spell.get(byte, "") for byte in (" " + word).encode()) for word in WORDS if word]
    while len(merges) < num_merges:
        word = rng.choice(spelled)
        first = rng.randrange(len(word) - 1)
        cut, end = first + 1, rng.randrange(first + 2, len(word) + 1)
        cut = rng.randrange(first + 1, end)
        left, right = word[first:cut], word[cut:end]
        if rng.random() < 0.05:
            left, right = rng.choice(plain), rng.choice(plain)
        if left in known and right in known and f"{left} {right}" not in merges:
            merges.append(f"{left} {right}")
            if left + right not in known:
                known.add(left + right)
                tokens.append(left + right)
                plain.append(left + right)
    return tokens, merges


def metadata(tokens, merges, pre: str = "default", **more) -> dict[str, object]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [TYPES.get(token, 1) for token in tokens],
        "tokenizer.ggml.merges": merges,
        **{f"tokenizer.ggml.{name}": value for name, value in more.items()},
    }


def both(seed: int, pre: str = "default", **more) -> tuple[Tokenizer, Tokenizer]:
    """(lazy, whole) from the same vocabulary."""
    tokens, merges = random_vocabulary(seed)
    lazy = tokenizer_gguf.tokenizer_from_gguf(metadata(packed(tokens), packed(merges), pre, **more))
    whole = tokenizer_gguf.tokenizer_from_gguf(metadata(tokens, merges, pre, **more))
    assert isinstance(lazy._backend, LazyBackend)
    assert isinstance(whole._backend, tokenizers.Tokenizer)
    return lazy, whole


@pytest.fixture(scope="module", params=["default", "llama-bpe", "qwen2", "smollm"])
def pair(request) -> tuple[Tokenizer, Tokenizer]:
    return both(len(request.param), request.param, bos_token_id=1, eos_token_id=2, add_bos_token=True)


TEXT = st.text(max_size=40) | st.lists(st.sampled_from([*WORDS, *SPECIAL, " ", "the", "at"]), max_size=12).map("".join)


@given(text=TEXT, add_special=st.booleans())
def test_a_part_encodes_as_the_whole(pair, text: str, add_special: bool):
    lazy, whole = pair
    lazy._backend._num_parts = 0
    assert lazy.encode(text, add_special=add_special) == whole.encode(text, add_special=add_special)
    assert lazy._backend._whole is None


LACKING = b"\x14\x16" + "ü".encode()[1:] + "東".encode()[:2]


@pytest.fixture(scope="module", params=[False, True], ids=["merged", "ignore_merges"])
def lacking(request) -> tuple[LazyBackend, tokenizers.Tokenizer]:
    """(lazy, whole) without tokens for some bytes, which the library drops: their neighbors become one token."""
    tokens, merges = random_vocabulary(12, lacking=LACKING)
    tokens += ["--", "----", "==", "-Ė-", "ĠnaÃ¼", "東"]  # three that no merge makes
    merges += ["- -", "-- --", "= ="]
    lacks = {char for char, byte in byte_alphabet().items() if byte in LACKING}
    assert lacks.isdisjoint(tokens)

    def make(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
        made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, ignore_merges=request.param))
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.add_special_tokens(SPECIAL)
        return made

    lazy = LazyBackend(packed_tokens(tokens, merges), make, dict.fromkeys(SPECIAL, 0))
    return lazy, lazy.whole()


BETWEEN = st.sampled_from([*WORDS, *SPECIAL, " ", "-", "--", "=", "naü", "\x14", "\x16", "ü", "東"])


@given(text=st.lists(BETWEEN, max_size=12).map("".join) | st.text(max_size=40))
@example("--\x16--")
@example("=\x14=")
@example("-\x16-")
def test_bytes_that_have_no_token_are_dropped_alike(lacking, text: str):
    lazy, whole = lacking
    lazy._whole, lazy._num_parts = None, 0
    assert lazy.encode_batch_fast([text])[0].ids == whole.encode_batch_fast([text])[0].ids
    assert lazy._whole is None


def test_two_texts_get_the_whole():
    lazy, whole = both(13)
    texts = ["the cat", "sat on"]
    found = lazy._backend.encode_batch_fast(texts, add_special_tokens=False)
    assert [encoding.ids for encoding in found] == [whole.encode(text, add_special=False) for text in texts]


def test_an_added_token_costs_a_part_little_however_long_it_is():
    tokens, merges = random_vocabulary(14)
    long = "<" + "x" * 100_000 + ">"
    types = {"tokenizer.ggml.token_type": [1] * len(tokens) + [3]}
    begin = time.thread_time()
    lazy = tokenizer_gguf.tokenizer_from_gguf(metadata(packed([*tokens, long]), packed(merges)) | types)
    assert lazy.encode("x") == [tokens.index("x")]
    assert time.thread_time() - begin < 2  # to search it for tokens takes minutes
    assert lazy.encode(f"x{long}") == [tokens.index("x"), len(tokens)]


@given(ids=st.lists(st.integers(0, 700), max_size=20), skip=st.booleans(), spaces=st.booleans())
def test_it_decodes_as_the_whole(pair, ids: list[int], skip: bool, spaces: bool):
    lazy, whole = pair
    options = {"skip_special": skip, "spaces_between_special": spaces}
    assert lazy.decode(ids, **options) == whole.decode(ids, **options)


def test_it_knows_what_the_whole_knows(pair):
    lazy, whole = pair
    assert (lazy.vocab_size, lazy.bos_id, lazy.eos_ids) == (whole.vocab_size, whole.bos_id, whole.eos_ids)
    assert (lazy.adds_bos, lazy.special_ids) == (whole.adds_bos, whole.special_ids)
    for id in range(-1, lazy.vocab_size + 2):
        assert lazy.token_bytes(id) == whole.token_bytes(id)
    for token in ["the", "Ġthe", "<user>", "no such token"]:
        assert lazy.token_id(token) == whole.token_id(token)


def test_who_asks_much_gets_the_whole():
    lazy, whole = both(3)
    for number in range(MAX_PARTS):
        assert lazy.encode(f"the cat {number}") == whole.encode(f"the cat {number}")
    assert lazy._backend._whole is None
    assert lazy.encode("the cat sat") == whole.encode("the cat sat")
    assert lazy._backend._whole is not None
    assert lazy.encode("the mat") == whole.encode("the mat")


@pytest.mark.parametrize("text", ["the cat " * MAX_PART_BYTES, "東" * (MAX_PART_BYTES // 4)])
def test_a_long_text_gets_the_whole(text: str):
    lazy, whole = both(4)
    assert lazy.encode(text) == whole.encode(text)
    assert lazy._backend._whole is not None


@pytest.mark.parametrize("text", ["a\ud800b", 7, None])
def test_what_is_no_text_is_refused_alike(text):
    for tokenizer in both(5):
        with pytest.raises(RequestError, match="cannot be encoded"):
            tokenizer.encode(text)


FAULTS = {
    "twice": lambda tokens, merges: tokens.append(tokens[5]),
    "no UTF-8": lambda tokens, merges: tokens.append("\udcff"),
    "no such side": lambda tokens, merges: merges.append("the zzz"),
    "makes no token": lambda tokens, merges: merges.append("! #"),
    "no space": lambda tokens, merges: merges.append("thecat"),
    "an empty merge": lambda tokens, merges: merges.append(""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_vocabulary_with_a_fault_is_refused_as_before(fault: str):
    tokens, merges = random_vocabulary(6)
    FAULTS[fault](tokens, merges)
    with pytest.raises(ValueError, match=r"token|merge"):
        packed_tokens(tokens, merges)
    with pytest.raises(ModelFormatError) as lazy:
        tokenizer_gguf.tokenizer_from_gguf(metadata(packed(tokens), packed(merges)))
    with pytest.raises(ModelFormatError) as whole:
        tokenizer_gguf.tokenizer_from_gguf(metadata(tokens, merges))
    assert str(lazy.value) == str(whole.value)


def test_an_empty_token_gets_a_name_as_before():
    tokens, merges = random_vocabulary(7)
    tokens.append("")
    given = tokenizer_gguf.tokenizer_from_gguf(metadata(packed(tokens), packed(merges)))
    assert given.token_id(f"[EMPTY_{len(tokens) - 1}]") == len(tokens) - 1


@given(st.binary(max_size=60), st.integers(0, 5), st.binary(max_size=60), st.integers(0, 5))
def test_any_bytes_are_a_vocabulary_or_refused(tokens: bytes, num_tokens: int, merges: bytes, num_merges: int):
    try:
        vocabulary = Vocabulary(tokens, num_tokens, merges, num_merges)
    except ValueError:
        return
    assert len(vocabulary.whole()[0]) == num_tokens


@given(st.lists(st.binary(min_size=1, max_size=4), max_size=4, unique=True))
def test_utf8_is_what_python_takes_for_it(strings: list[bytes]):
    def is_text(one: bytes) -> bool:
        try:
            one.decode()
        except UnicodeDecodeError:
            return False
        return True

    data = b"".join(struct.pack("<Q", len(one)) + one for one in strings)
    if all(map(is_text, strings)):
        assert list(Vocabulary(data, len(strings), b"", 0).whole()[0]) == [one.decode() for one in strings]
    else:
        with pytest.raises(ValueError, match="UTF-8"):
            Vocabulary(data, len(strings), b"", 0)


def test_a_part_is_small():
    tokens, merges = random_vocabulary(8)
    vocabulary = packed_tokens(tokens, merges).vocabulary
    found, joined = vocabulary.part("Ġthe".encode())
    assert found.keys() == {token for token in tokens if token in "Ġthe"}
    assert joined == [tuple(line.split(" ")) for line in merges if line.replace(" ", "") in "Ġthe"]
    with pytest.raises(IndexError):
        vocabulary.token(len(tokens))


def test_tokens_are_a_sequence():
    tokens, merges = random_vocabulary(9)
    assert list(packed_tokens(tokens, merges)) == tokens
    with pytest.raises(IndexError):
        packed_tokens(tokens, merges)[-1]


def test_threads_build_one_whole(monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    lazy, whole = both(10)
    monkeypatch.setattr(lazy_backend, "MAX_PARTS", 0)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lazy.encode, ["the cat sat"] * 50))
    assert found == [whole.encode("the cat sat")] * 50


def test_a_server_has_the_whole_before_its_first_request():
    for tokenizer in both(11):
        tokenizer.complete()
        assert tokenizer.encode("the cat")
    assert both(11)[0]._backend._whole is None
    lazy, _ = both(11)
    lazy.complete()
    assert lazy._backend._whole is not None
