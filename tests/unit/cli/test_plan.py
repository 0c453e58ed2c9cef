"""`octavo plan`: a model's faults and wrong flags have their exit codes."""

from functools import partial

from tests.support.command_line import run_cli

plan = partial(run_cli, "plan")


def test_a_models_faults_have_their_codes(tiny_model, tmp_path, capsys):
    assert plan(tmp_path / "nowhere") == 66
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    (broken / "model.safetensors").write_bytes(b"")
    assert plan(broken) == 65
    assert plan(tiny_model, "--max-model-len", 4096, "--device", "cpu") == 2
    assert plan(tiny_model, "--model", tiny_model) == 2
    assert plan(tiny_model, "--temperature", "1") == 2
    assert capsys.readouterr().out == ""
