"""A hostile template inside a model's files, met through the server's routes."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.hostile_templates import BOMBS, INSIDES, PAYLOADS
from tests.support.render_pools import USER, children, earlier_children, says
from tests.support.serving import served

__all__ = ["earlier_children"]


class TestOverHttp:
    """A hostile template inside a model's files, met through the server's routes."""

    def model(self, tiny_model: Path, folder: Path, source: str) -> Path:
        shutil.copytree(tiny_model, folder)
        (folder / "chat_template.jinja").write_text(source)
        return folder

    @pytest.mark.timed
    def test_bombs_and_injections(self, tiny_model: Path, tmp_path: Path) -> None:
        marker = tmp_path / "marker"
        names = ["nested loops", "times", "doubling", "lists of lists", "power", "endless macro"]
        evil = [BOMBS[name] for name in names] + [
            payload.replace("CMD", f"touch {marker}") for payload in PAYLOADS if "include" not in payload
        ][:12:3]
        branches = [f"{{% elif messages[0].content == '{number}' %}}{body}" for number, body in enumerate(evil)]
        source = "{% if messages[0].content == 'Hi' %}<|im_start|>" + "".join(branches) + "{% endif %}"
        with served(self.model(tiny_model, tmp_path / "model", source)) as server:
            body = {"max_tokens": 4, "temperature": 0}
            for number in range(len(evil)):
                with ThreadPoolExecutor(1) as pool:
                    begun = time.monotonic()
                    bomb = pool.submit(server.post, "/v1/chat/completions", body | {"messages": says(str(number))})
                    assert server.post("/v1/completions", body | {"prompt": "Hi"}).status_code == 200
                    assert server.post("/v1/chat/completions", body | {"messages": USER}).status_code == 200
                    assert server.get("/health/live").status_code == 200
                    answer = bomb.result()
                assert time.monotonic() - begun < 2.0
                if number < len(names):
                    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages"), answer.text
                assert answer.status_code in (200, 400)
                assert not any(inside in answer.text for inside in INSIDES)
            server.wait_idle()
        assert not marker.exists()
        assert not children()

    def test_a_broken_template_costs_chat_only(self, tiny_model: Path, tmp_path: Path) -> None:
        with served(self.model(tiny_model, tmp_path / "model", "{% for %}")) as server:
            assert server.get("/health/ready").status_code == 200
            answer = server.post("/v1/chat/completions", {"messages": USER})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
            assert "template" in answer.json()["error"]["message"]
            assert server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 2}).status_code == 200
        assert not children()
