import json
from pathlib import Path

import pytest

from tests.cli.running import Run


def test_a_file_that_is_there_is_not_replaced(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    out.write_bytes(b"mine")
    ended = run("export", str(tmp_path), str(out))
    assert ended.code == 9
    assert "--force" in ended.err
    assert out.read_bytes() == b"mine"


def test_without_the_extra_the_command_says_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aula.models.exported.NEEDED", ("no_such_exporter",))
    (tmp_path / "config.json").write_text("{}")
    ended = run("export", str(tmp_path), str(tmp_path / "model.onnx"), "--json")
    assert ended.code == 5
    assert json.loads(ended.out)["error"]["next_step"] == 'pip install "aula[export]"'


def test_a_family_without_a_recipe_is_led_to_the_export(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    ended = run("build", str(tmp_path))
    assert ended.code == 5
    assert "'roberta'" in ended.err
    assert "aula export" in ended.err
