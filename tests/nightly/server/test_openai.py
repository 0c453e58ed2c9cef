"""The `openai` client waits as long as the server says, and tries again."""

import openai
import pytest

from tests.support.openai_server import complete, running

pytestmark = pytest.mark.nightly


def test_who_comes_too_early_tries_again(smollm2_path, tmp_path):
    """The server listens before the model is loaded, and says when to come back."""
    with running(smollm2_path, tmp_path / "log", says="Listening on") as server:
        with pytest.raises(openai.InternalServerError) as caught:
            server.client.completions.create(model="any", prompt="Hi", max_tokens=1)
        assert (caught.value.status_code, caught.value.code) == (503, "starting")
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        with server.openai(max_retries=5) as client:
            raw = client.models.with_raw_response.list()
        assert raw.retries_taken >= 1
        assert complete(server, max_tokens=1).choices[0].finish_reason == "length"
