"""The text of streams against naive oracles, on many thousands of random sequences."""

import pytest
from hypothesis import given

from octavo.text.stream import StreamOptions
from tests.support.text_streams import (
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
    valid,
)

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def byte_level() -> Vocabulary:
    return byte_level_vocabulary()


@pytest.fixture(scope="module")
def llama_like() -> Vocabulary:
    return llama_like_vocabulary()


@pytest.fixture(scope="module")
def metaspace_like() -> Vocabulary:
    return metaspace_like_vocabulary()


@given(case=cases(anything), drawn=stop_options())
@sized(10_000)
def test_sweep_byte_level(byte_level: Vocabulary, case: Case, drawn: tuple[Case, StreamOptions]) -> None:
    check_byte_level(byte_level, case)
    check_stops(byte_level, *drawn)


@given(case=cases(anything), other=cases(valid))
@sized(5_000)
def test_sweep_sentencepiece(llama_like: Vocabulary, metaspace_like: Vocabulary, case: Case, other: Case) -> None:
    for vocabulary in (llama_like, metaspace_like):
        check_sentencepiece(vocabulary, case)
        check_sentencepiece(vocabulary, other)
