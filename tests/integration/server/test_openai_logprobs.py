"""The `openai` client: log-probabilities in both shapes, streamed or not, and the scores of a prompt."""

import itertools
from typing import Any

import pytest

from tests.support.openai_server import STORY, OpenAIServer, chat, complete, greedy


class TestLogprobs:
    def test_chat_shape(self, tiny: OpenAIServer) -> None:
        choice = chat(tiny, logprobs=True, top_logprobs=3, **greedy()).choices[0]
        content = choice.logprobs.content
        assert len(content) == 16
        text = b"".join(bytes(entry.bytes) for entry in content).decode(errors="replace")
        assert text == choice.message.content
        for entry in content:
            assert len(entry.top_logprobs) == 3
            logprobs = [top.logprob for top in entry.top_logprobs]
            assert logprobs == sorted(logprobs, reverse=True)
            assert entry.logprob == logprobs[0] <= 0
            assert entry.token == entry.top_logprobs[0].token
        bare = chat(tiny, logprobs=True, **greedy()).choices[0].logprobs.content
        assert [entry.logprob for entry in bare] == pytest.approx([entry.logprob for entry in content])
        assert all(entry.top_logprobs == [] for entry in bare)
        assert chat(tiny, **greedy()).choices[0].logprobs is None

    def test_streamed(self, tiny: OpenAIServer) -> None:
        whole = chat(tiny, logprobs=True, top_logprobs=2, **greedy()).choices[0].logprobs.content
        streamed = []
        for chunk in chat(tiny, logprobs=True, top_logprobs=2, stream=True, **greedy()):
            if chunk.choices[0].logprobs is not None:
                streamed += chunk.choices[0].logprobs.content
        assert [(entry.token, entry.bytes) for entry in streamed] == [(entry.token, entry.bytes) for entry in whole]
        assert [entry.logprob for entry in streamed] == pytest.approx([entry.logprob for entry in whole], abs=1e-5)

    def test_legacy_shape(self, tiny: OpenAIServer) -> None:
        choice = complete(tiny, logprobs=2, **greedy()).choices[0]
        table = choice.logprobs
        assert {len(table.tokens), len(table.token_logprobs), len(table.top_logprobs), len(table.text_offset)} == {16}
        assert table.text_offset[0] == 0
        assert table.text_offset == sorted(table.text_offset)
        for logprob, top in zip(table.token_logprobs, table.top_logprobs, strict=True):
            assert logprob == max(top.values())
            assert 1 <= len(top) <= 2
        pieces: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "text_offset": []}
        for chunk in complete(tiny, logprobs=2, stream=True, **greedy()):
            if chunk.choices[0].logprobs is not None:
                for name, found in pieces.items():
                    found += vars(chunk.choices[0].logprobs)[name]
        assert pieces["tokens"] == table.tokens
        assert pieces["text_offset"] == table.text_offset
        assert pieces["token_logprobs"] == pytest.approx(table.token_logprobs, abs=1e-5)

    def test_echo_scores_what_generation_said(self, tiny: OpenAIServer) -> None:
        """As evaluation harnesses do: a text's log-probabilities are those with which it was generated."""
        made = complete(tiny, logprobs=1, **greedy()).choices[0]
        ids = [*made.prompt_token_ids, *made.token_ids]
        scored = complete(tiny, ids, max_tokens=0, echo=True, logprobs=1).choices[0]
        table = scored.logprobs
        assert len(table.tokens) == len(ids)
        assert (table.token_logprobs[0], table.top_logprobs[0]) == (None, None)
        assert table.token_logprobs[-16:] == pytest.approx(made.logprobs.token_logprobs, abs=1e-3)
        assert scored.text == STORY + made.text
        one = complete(tiny, ids, max_tokens=1, echo=True, logprobs=1, temperature=0).choices[0].logprobs
        assert len(one.tokens) == len(ids) + 1
        assert one.token_logprobs[1:-1] == pytest.approx(table.token_logprobs[1:], abs=1e-3)

    def test_echo_of_text(self, tiny: OpenAIServer) -> None:
        found = complete(tiny, echo=True, **greedy()).choices[0]
        assert found.text == STORY + complete(tiny, **greedy()).choices[0].text
        streamed = "".join(chunk.choices[0].text for chunk in complete(tiny, echo=True, stream=True, **greedy()))
        assert streamed == found.text
        scored = complete(tiny, echo=True, max_tokens=0, logprobs=0).choices[0]
        assert scored.text == STORY == "".join(scored.logprobs.tokens)
        offsets = [*scored.logprobs.text_offset, len(STORY)]
        assert [STORY[i:j] for i, j in itertools.pairwise(offsets)] == scored.logprobs.tokens
