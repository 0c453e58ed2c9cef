"""LLM on a tiny random model."""

import math
import shutil
from collections import UserList
from itertools import pairwise

import psutil
import pytest

from octavo import LLM, ConfigError, RequestError, SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
FIELDS = {"dtype": "float32", "device": "cpu", "threads": 1, "num_blocks": 512, "max_model_len": 256}


@pytest.fixture(scope="module")
def llm(tiny_model):
    with LLM(str(tiny_model), **FIELDS) as llm:
        yield llm


def test_one_prompt_or_many_text_or_ids(llm):
    ids = llm.engine.tokenizer.encode("hello there")
    many = llm.generate(["hello there", ids, {"prompt_token_ids": ids}, {"prompt": "hello there"}], GREEDY)
    assert len({tuple(output.outputs[0].token_ids) for output in many}) == 1
    assert [output.prompt for output in many] == ["hello there", None, None, "hello there"]
    assert llm.generate("hello there", GREEDY)[0].outputs[0].text == many[0].outputs[0].text
    assert llm.generate(ids, GREEDY)[0].prompt_token_ids == ids


def test_params_one_for_all_or_one_each(llm):
    each = [SamplingParams(max_tokens=n, ignore_eos=True) for n in (1, 2, 3)]
    assert [len(o.outputs[0].token_ids) for o in llm.generate(["a"] * 3, each)] == [1, 2, 3]
    with pytest.raises(RequestError, match="2 for 3 prompts"):
        llm.generate(["a"] * 3, each[:2])


def test_a_refused_prompt_leaves_nothing_behind(llm):
    with pytest.raises(RequestError, match="empty"):
        llm.generate(["fine", ""], GREEDY)
    for bad in ([], None, 5):
        with pytest.raises(RequestError):
            llm.generate(bad, GREEDY)
    assert not llm.engine.has_unfinished_requests()
    assert llm.get_stats()["blocks_used"] == 0


def test_unknown_fields_raise():
    with pytest.raises(ConfigError, match="max_seqs"):
        LLM("no-matter", max_seqs=3)


def test_streamed_text_grows_to_the_final_text(llm):
    whole = llm.generate("hello", GREEDY)[0].outputs[0]
    outputs = list(llm.generate_stream("hello", GREEDY))
    texts = [output.outputs[0].text for output in outputs]
    assert all(after.startswith(before) for before, after in pairwise(texts))
    assert (texts[-1], outputs[-1].finished) == (whole.text, True)
    assert len(outputs) == 16


def test_two_streams_at_once_and_one_left_early(llm):
    first, second = llm.generate_stream("hello", GREEDY), llm.generate_stream("world", GREEDY)
    next(first)
    last = list(second)[-1]
    assert last.outputs[0].text == llm.generate("world", GREEDY)[0].outputs[0].text
    first.close()
    assert not llm.engine.has_unfinished_requests()
    assert llm.get_stats()["blocks_used"] == 0


def test_chat_uses_the_models_template(llm):
    messages = [{"role": "user", "content": "hello"}]
    output = llm.chat(messages, SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True))[0]
    assert output.prompt_token_ids == llm.engine.render_chat(messages)
    assert len(llm.chat([messages, messages], SamplingParams(max_tokens=2))) == 2
    capped = llm.chat(messages, SamplingParams(temperature=0.0, ignore_eos=True))[0]  # max_tokens: up to the length
    assert len(capped.prompt_token_ids) + len(capped.outputs[0].token_ids) == 256


def test_a_process_for_templates_comes_with_the_first_chat_and_goes_with_the_end(tiny_model):
    """None is started for those who never chat."""

    def helpers():
        return {child.pid for child in psutil.Process().children()} - before

    before = {child.pid for child in psutil.Process().children()}
    messages, params = [{"role": "user", "content": "hello"}], SamplingParams(max_tokens=1)
    with LLM(str(tiny_model), **FIELDS) as llm:
        llm.generate("hello", params)
        assert not helpers()
        ids = [llm.chat(messages, params)[0].prompt_token_ids for _ in range(2)]
        assert len(helpers()) == 1
        with pytest.raises(RequestError, match=r"messages\[0\].role"):
            llm.chat([{"content": "hello"}])
        with pytest.raises(RequestError, match="not a JSON value"):
            llm.chat([{"role": "user", "content": "hello", "more": object()}])
    assert not helpers()
    ids.append(llm.engine.render_chat(UserList(messages)))  # whoever goes on has a new one
    assert len(helpers()) == 1
    assert ids[0] == ids[1] == ids[2]
    llm.shutdown()
    llm.shutdown()
    assert not helpers()


def test_a_hostile_template_ends_a_chat_and_not_the_program(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    source = "{% if messages[0].content == 'evil' %}{{ [1] | batch(999999999, 0) | list }}{% endif %}hello"
    (tmp_path / "model" / "chat_template.jinja").write_text(source)
    with LLM(str(tmp_path / "model"), **FIELDS) as llm:
        with pytest.raises(RequestError, match="need more memory"):
            llm.chat([{"role": "user", "content": "evil"}])
        assert len(llm.chat([{"role": "user", "content": "hello"}], SamplingParams(max_tokens=2))) == 1


def test_score_is_the_sum_of_prompt_logprobs(llm):
    encode = llm.engine.tokenizer.encode
    scores = llm.score("the", [" quick brown", " fox"])
    for score, continuation in zip(scores, [" quick brown", " fox"], strict=True):
        ids, seam = encode("the" + continuation), len(encode("the"))
        output = llm.generate(ids, SamplingParams(prompt_logprobs=0, max_tokens=1))[0]
        entries = list(zip(ids, output.prompt_logprobs, strict=True))[seam:]
        assert score == pytest.approx(sum(entry[token].logprob for token, entry in entries), abs=1e-3)
    with pytest.raises(RequestError):
        llm.score("the", "")
    with pytest.raises(RequestError, match="3 for 2"):
        llm.score(["a", "b"], ["a", "b", "c"])


def test_perplexity(llm):
    text = "the quick brown fox jumps over the lazy dog"
    ids = llm.engine.tokenizer.encode(text)
    output = llm.generate(ids, SamplingParams(prompt_logprobs=0, max_tokens=1))[0]
    logprobs = [entry[token].logprob for token, entry in zip(ids[1:], output.prompt_logprobs[1:], strict=True)]
    assert llm.perplexity(text)[0] == pytest.approx(math.exp(-sum(logprobs) / len(logprobs)), rel=1e-3)
    long = llm.perplexity([text * 40, text])  # longer than the model
    assert long[1] == pytest.approx(llm.perplexity(text)[0], rel=1e-3)
