"""Models of the Hugging Face hub, with a stand-in for it on the loopback."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.fake_hub import TOKEN, Repository, StandIn
from tests.support.hub_process import DRIVER, ask, environment


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with StandIn() as server:
        yield server


MIB = 1 << 20
# --- the Hugging Face hub
SIDE = {"config.json": b"{}", "tokenizer.json": b"[]", "generation_config.json": b"{ }", "chat_template.jinja": b"x"}
SHARDS = {f"model-0000{i}-of-00002.safetensors": bytes([i]) * 3000 for i in (1, 2)}
INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
SINGLE = Repository({
    "main": {
        **SIDE, "model.safetensors": b"s" * 5000, "model.fp16.safetensors": b"h" * 9, "consolidated.safetensors": b"c",
        "pytorch_model.bin": b"p", "README.md": b"r", "onnx/model.onnx": b"o", "original/x.safetensors": b"o",
    },
    "v1": {**SIDE, "model.safetensors": b"old"},
})  # fmt: skip
SHARDED = Repository({
    "main": {**SIDE, **SHARDS, "model.safetensors.index.json": INDEX.encode(), "consolidated.safetensors": b"c"}
})  # fmt: skip


def names_in(folder: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


def test_hub_single_revision_tokenizer_list_remove(standin: StandIn, tmp_path: Path) -> None:
    standin.repositories["o/single"] = SINGLE
    variables = environment(tmp_path, standin.url + "/")
    results, errors = ask(variables, "tokenizer o/single", "o/single", "o/single@v1", "o/single@nope", "list")
    tokenizer, main, old, unknown, listed = results
    assert tokenizer == main  # one snapshot; the weights came second
    assert names_in(main) == set(SIDE) | {"model.safetensors"}
    assert Path(main, "model.safetensors").read_bytes() == b"s" * 5000
    assert Path(old, "model.safetensors").read_bytes() == b"old"
    assert unknown == ["ModelNotFoundError", f"o/single has no revision 'nope' on {standin.url}"]
    assert sorted(standin.fetched()) == sorted([*SIDE, "model.safetensors", "model.safetensors"])
    assert errors == "octavo: fetching o/single\n" * 3
    (_, (name, path, num_bytes, source)) = listed
    assert (name, source) == ("o/single", "huggingface")
    assert path in (main, old)
    assert num_bytes > 5000
    results, _ = ask(variables, "remove o/single", "remove o/single", "list")
    assert results[0] > 5000
    assert results[1][0] == "ModelNotFoundError"
    assert len(results[2]) == 1
    assert not Path(main).exists()


def test_hub_sharded_then_offline_then_unreachable(standin: StandIn, tmp_path: Path) -> None:
    standin.repositories["o/sharded"] = SHARDED
    variables = environment(tmp_path, standin.url)
    (folder, *_), _ = ask(variables, "o/sharded")
    assert names_in(folder) == {*SIDE, *SHARDS, "model.safetensors.index.json"}
    num_requests = len(standin.requests)
    offline = variables | {"HF_HUB_OFFLINE": "1"}
    results, _ = ask(offline, "o/sharded", "o/other", "o/sharded@v2")
    assert results[0] == folder
    assert results[1] == ["ModelNotFoundError", "o/other is not in the cache, and HF_HUB_OFFLINE forbids fetching it"]
    assert "not in the cache at revision 'v2'" in results[2][1]
    assert len(standin.requests) == num_requests
    assert ask(variables, "o/sharded") == ([folder], "")
    standin.status = 500
    results, errors = ask(variables, "o/sharded")
    assert results[0] == folder
    assert "the hub cannot be reached" in errors
    standin.close()
    start = time.monotonic()
    results, errors = ask(variables, "o/sharded", "o/other")
    assert results[0] == folder
    assert "using the cache" in errors
    assert results[1][0] == "ModelNotFoundError"
    assert f"o/other is not in the cache and could not be fetched from {standin.url}" in results[1][1]
    assert time.monotonic() - start < 20
    next(path for path in Path(folder).iterdir() if "00002-of" in path.name).unlink()
    results, _ = ask(offline, "o/sharded")
    assert results[0][0] == "ModelNotFoundError"
    assert "incomplete, model-00002-of-00002.safetensors is missing" in results[0][1]


def test_hub_transfer_that_is_cut_goes_on_where_it_was(standin: StandIn, tmp_path: Path) -> None:
    data = os.urandom(12 * MIB)
    standin.repositories["o/big"] = Repository({"main": {**SIDE, "model.safetensors": data}})
    standin.cuts["model.safetensors"] = 11 * MIB
    (folder, *_), _ = ask(environment(tmp_path, standin.url), "o/big")
    assert Path(folder, "model.safetensors").read_bytes() == data
    ranges = [header for method, path, header in standin.requests if method == "GET" and path.endswith("l.safetensors")]
    assert len(ranges) == 2
    assert ranges[0] is None
    assert ranges[1] is not None
    assert 0 < int(ranges[1].removeprefix("bytes=").removesuffix("-")) <= 11 * MIB


def test_hub_process_that_is_killed_keeps_the_whole_files(standin: StandIn, tmp_path: Path) -> None:
    standin.repositories["o/sharded"] = SHARDED
    stuck = "model-00002-of-00002.safetensors"
    standin.stalls[stuck] = 1000
    variables = environment(tmp_path, standin.url)
    process = subprocess.Popen([sys.executable, "-c", DRIVER, "o/sharded"], env=variables, stderr=subprocess.PIPE)
    assert standin.stalled.wait(60)
    blobs = tmp_path / "hf" / "hub" / "models--o--sharded" / "blobs"
    whole = {*SIDE, *SHARDS, "model.safetensors.index.json"} - {stuck}
    while len([path for path in blobs.glob("*") if path.suffix != ".incomplete"]) < len(whole):
        time.sleep(0.05)
    time.sleep(0.2)
    process.kill()
    process.communicate()
    offline, _ = ask(variables | {"HF_HUB_OFFLINE": "1"}, "o/sharded")
    assert offline[0][0] == "ModelNotFoundError"
    assert "incomplete" in offline[0][1]
    standin.stalls.clear()
    standin.go_on.set()
    (folder, *_), _ = ask(variables, "o/sharded")
    assert Path(folder, stuck).read_bytes() == SHARDS[stuck]
    assert sorted(standin.fetched()) == sorted([*whole, stuck, stuck])


def test_hub_access_is_refused_with_advice(standin: StandIn, tmp_path: Path) -> None:
    standin.repositories["o/gated"] = replace(SINGLE, gated=True)
    variables = environment(tmp_path, standin.url)
    for wrong in ({}, {"HF_TOKEN": "hf_wrong"}):
        results, _ = ask(variables | wrong, "o/gated")
        kind, message = results[0]
        assert kind == "ModelNotFoundError"
        for part in ("o/gated", "HTTP 401", f"{standin.url}/o/gated", "HF_TOKEN", "hf auth login"):
            assert part in message
        assert "hf_wrong" not in message
    assert standin.fetched() == []
    results, _ = ask(variables | {"HF_TOKEN": TOKEN}, "o/gated")
    assert "model.safetensors" in names_in(results[0])
    standin.repositories["o/gated"] = SINGLE
    standin.status = 403
    results, _ = ask(variables, "o/other", "o/--x--/", "o/a..b")
    assert "HTTP 403" in results[0][1]
    assert "owner/name" in results[1][1]
    assert results[2][0] == "ModelNotFoundError"


def test_hub_repositories_that_cannot_be_loaded(standin: StandIn, tmp_path: Path) -> None:
    ggufs = {f"x-{kind}.gguf": kind.encode() for kind in ("Q4_0", "Q8_0")}
    standin.repositories |= {
        "o/pickle": Repository({"main": {**SIDE, "pytorch_model.bin": b"p" * 100}}),
        "o/none": Repository({"main": {"README.md": b""}}),
        "o/lora": Repository({"main": {"adapter_model.safetensors": b"", "tokenizer.json": b""}}),
        "o/gguf": Repository({"main": {"README.md": b"", "deep/x-Q4_0.gguf": b"one"}}),
        "o/ggufs": Repository({"main": {"config.json": b"", **ggufs}}),
    }
    names = ["o/absent", "o/pickle", "o/none", "o/lora", "o/gguf", "o/ggufs", "o/ggufs:x-Q8_0.gguf", "o/ggufs:y.gguf"]
    results, _ = ask(environment(tmp_path, standin.url), *names)
    found = dict(zip(names, results, strict=True))
    assert found["o/absent"] == ["ModelNotFoundError", f"there is no model o/absent on {standin.url}"]
    assert found["o/pickle"][0] == "ModelFormatError"
    assert "o/pickle has only pickled weights" in found["o/pickle"][1]
    assert "safe_serialization" in found["o/pickle"][1]
    assert found["o/none"] == ["ModelFormatError", "o/none holds neither safetensors nor GGUF weights"]
    assert found["o/lora"][0] == "ModelFormatError"
    assert "no config.json" in found["o/lora"][1]
    assert Path(found["o/gguf"]).read_bytes() == b"one"
    assert found["o/ggufs"][0] == "ModelNotFoundError"
    assert "o/ggufs:FILE, where FILE is one of x-Q4_0.gguf, x-Q8_0.gguf" in found["o/ggufs"][1]
    assert Path(found["o/ggufs:x-Q8_0.gguf"]).read_bytes() == b"Q8_0"
    assert "no file y.gguf" in found["o/ggufs:y.gguf"][1]
    assert sorted(standin.fetched()) == ["x-Q4_0.gguf", "x-Q8_0.gguf"]
