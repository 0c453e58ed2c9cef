"""The text of the built-in model, for real: its tokenizer, its chat template, its stream."""

from pathlib import Path

import pytest

from octavo.text.stream import StreamOptions, TextStream
from octavo.text.template_text import template_text_from_gguf
from octavo.text.tokenizer import Tokenizer
from octavo.weights.open import open_checkpoint
from tests.support.chat_templates import by_transformers, compiled, conversations
from tests.support.text_streams import TEXTS
from tests.support.tokenizer_samples import fixture, tokenizer_of


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return tokenizer_of(smollm2_path)


def test_ids_are_those_that_llamacpp_recorded(smollm2: Tokenizer) -> None:
    recorded = fixture("llamacpp_smollm2.json")
    assert len(recorded["texts"]) >= 290
    for text, ids in zip(recorded["texts"], recorded["ids"], strict=True):
        assert smollm2.encode(text, add_special=False) == ids, text


def test_attributes_of_the_tokenizer(smollm2: Tokenizer) -> None:
    assert smollm2.vocab_size == 49152
    assert smollm2.bos_id == 1
    assert smollm2.eos_ids == (0, 2)  # <|im_end|> by the file; <|endoftext|> because it ends every text
    assert not smollm2.adds_bos
    assert {0, 1, 2} <= smollm2.special_ids


def test_texts_come_back(smollm2: Tokenizer) -> None:
    for text in (
        "The capital of France is",
        "\n\n  naïve café 日本語 🙂👨‍👩‍👧‍👦\t",
        "<|im_start|>user\nHi<|im_end|>",
    ):
        ids = smollm2.encode(text)
        assert smollm2.decode(ids, skip_special=False) == text
        assert b"".join(smollm2.token_bytes(id) for id in ids) == text.encode()


def test_special_tokens(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("<|im_start|>user\nHi<|im_end|>")
    assert (ids[0], ids[-1]) == (1, 2)
    assert smollm2.decode(ids) == "user\nHi"


def test_prompts_are_those_of_transformers(smollm2_path: Path) -> None:
    checkpoint = open_checkpoint(smollm2_path)
    found = compiled(template_text_from_gguf(checkpoint.metadata))
    source = checkpoint.metadata["tokenizer.chat_template"]
    checkpoint.close()
    assert found is not None
    for messages, _ in conversations(50):
        theirs = by_transformers(str(source), messages, None, add_generation_prompt=True)
        assert found.render(messages) == theirs


def test_octavos_own_tokenizer_streams_what_it_decodes(smollm2: Tokenizer) -> None:
    tokenizer = smollm2
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
