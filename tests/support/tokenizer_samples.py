"""What the tokenizer tests share: random texts of all Unicode, small trained tokenizers, vocabulary-only GGUF files."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from octavo.text.tokenizer import Tokenizer as OurTokenizer
from octavo.text.tokenizer_gguf import tokenizer_from_gguf
from octavo.weights.open import open_checkpoint

FIXTURES = Path(__file__).parent / "fixtures"

# Ranges of assigned characters, the ordinary ones first; no surrogates.
_RANGES = (
    (0x20, 0x7E), (0x20, 0x7E), (0x20, 0x7E), (0xA0, 0x17F), (0x300, 0x36F), (0x370, 0x52F), (0x531, 0x5F4),
    (0x600, 0x6FF), (0x900, 0xDFF), (0xE01, 0xE5B), (0x10A0, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x27BF),
    (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE010), (0xFB00, 0xFFFD), (0x1F300, 0x1FAFF),
    (0x10000, 0x10FFFF), (0x00, 0x1F),
)  # fmt: skip
_BITS = (
    " ", "  ", "\n", "\n\n", "\t", "\r\n", "'s", "'LL", "n't", "12", "1234567", "3.14", "...", "!?", "/", "</s>", "<s>",
    "<|im_start|>", "<|im_end|>", "<think>", "▁", "Ġ", "<0x0A>", "\u00a0", "\u200d", "e\u0301", "🙂", "word", "Word",
    "WORD", " the", "_",
)  # fmt: skip


def random_texts(count: int, seed: int) -> Iterator[str]:
    """Texts of up to 60 parts: characters of one script at a time, and what pre-tokenizers and special tokens mind."""
    rng = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(0, 12)):
            if rng.random() < 0.5:
                parts.append(rng.choice(_BITS))
            else:
                low, high = rng.choice(_RANGES)
                codes = [rng.randint(low, high) for _ in range(rng.randint(1, 5))]
                parts.append("".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000))
        yield "".join(parts)


def fixture(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((FIXTURES / name).read_text(encoding="utf-8"))
    return value


# What llama.cpp was asked, and what it said; see fixtures/record_llamacpp.py.
BYTES, SPM = fixture("llamacpp_bytes.json"), fixture("llamacpp_spm.json")
GGML = "tokenizer.ggml."
TYPES = GGML + "token_type"


def bytes_metadata(pre: str = "gpt-2", **changes: object) -> dict[str, Any]:
    """GGUF metadata of a byte-level vocabulary with these keys changed."""
    return BYTES["metadata"] | {GGML + "pre": pre} | {GGML + key: value for key, value in changes.items()}


def spm_metadata(**changes: object) -> dict[str, Any]:
    """The same of a SentencePiece vocabulary."""
    return SPM["metadata"] | {GGML + key: value for key, value in changes.items()}


def tokenizer_of(path: Path) -> OurTokenizer:
    """Octavo's tokenizer of a GGUF file."""
    checkpoint = open_checkpoint(path)
    try:
        return tokenizer_from_gguf(checkpoint.metadata)
    finally:
        checkpoint.close()


def transformers_encoder(path: Path) -> Callable[[str], list[int]]:
    """What transformers makes of a text, with its own conversion of the GGUF file at `path`."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return lambda text: theirs(text)["input_ids"]


def byte_level_tokenizer() -> Tokenizer:
    """Of the GPT-2 kind: 600 tokens, BOS put in front, two special tokens and one that is added but not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(random_texts(400, 5), trainer)
    tokenizer.add_tokens(["<think>"])
    return with_bos(tokenizer, "<s>")


def unigram_tokenizer() -> Tokenizer:
    """Of the SentencePiece Unigram kind (T5, XLM-R), with a normalizer and the metaspace."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=700, unk_token="<unk>", special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    texts = ("".join(char for char in text if ord(char) < 0x250) for text in random_texts(400, 6))
    tokenizer.train_from_iterator(texts, trainer)
    return with_bos(tokenizer, "<s>")


def llama2_tokenizer() -> Tokenizer:
    """What a tokenizer.json of Llama 2 holds, from the recorded SentencePiece vocabulary: merges and byte fallback."""
    metadata = fixture("llamacpp_spm.json")["metadata"]
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    vocab = {token: id for id, token in enumerate(tokens)}
    plain = {token for token, type in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True) if type == 1}
    cuts = [(token[:at], token[at:]) for token in plain for at in range(1, len(token))]
    merges = [cut for cut in cuts if cut[0] in plain and cut[1] in plain]
    merges.sort(key=lambda cut: (-scores[vocab["".join(cut)]], -len(cut[0])))
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return with_bos(tokenizer, "<s>")


def with_bos(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    special = [(bos, tokenizer.token_to_id(bos))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=special)
    return tokenizer


def save_directory(path: Path, tokenizer: Tokenizer, **files: object) -> Path:
    """A model directory with this tokenizer and these files (`tokenizer_config` for tokenizer_config.json, ...)."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return path


def write_vocab_gguf(path: Path, metadata: dict[str, Any]) -> Path:
    """A GGUF file with this vocabulary and no weights, written by the `gguf` package."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_block_count, writer.add_head_count):
        add(64)
    writer.add_feed_forward_length(64)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in metadata.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case str():
                writer.add_string(key, value)
            case int():
                writer.add_uint32(key, value)
            case list():
                writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
