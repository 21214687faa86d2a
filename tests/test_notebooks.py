"""The notebooks of colab/: as they are kept, and executed from end to end in a small mode."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from experiments.lib.workdir import read_metrics

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
SMALL = (  # arguments of configs/tiny.py
    "warm_start.steps=2,warm_start.copy_steps=1,warm_start.quote_steps=0,warm_start.copy_rows=4,"
    "warm_start.rows=4,warm_start.micro_batch=0,rl.steps=2,rl.instances=1,rl.rollouts=2,"
    "rl.micro_batch=2,model.hidden_size=32,model.num_layers=1,model.num_heads=2,"
    "model.num_kv_heads=1,model.head_dim=8,model.mlp_size=32,tokenizer.vocab_size=600,"
    "prompt.tokens=320,prompt.response_tokens=32,checkpoint_every=1,"
    "eval.every=2,eval.instances=1,eval.test_instances=1"
)


def cells(path, kind):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


def execute(name, monkeypatch, **variables):
    """Executes a notebook where it lies; returns all that its cells put out, as one text."""
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    for variable, value in variables.items():
        monkeypatch.setenv(f"MEMALPHA_{variable}", str(value))
    book = nbformat.read(ROOT / "colab" / f"{name}.ipynb", 4)
    folder = {"metadata": {"path": str(ROOT / "colab")}}
    NotebookClient(book, timeout=600, kernel_name="python3", resources=folder).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    texts = [output.get("text", "") for output in outputs]
    for output in outputs:
        texts += map(str, output.get("data", {}).values())
    return "\n".join(texts)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_valid_without_outputs_and_begin_with_the_same_install(path):
    book = nbformat.read(path, 4)
    nbformat.validate(book)
    code = cells(path, "code")
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    assert code[0].source == cells(NOTEBOOKS[0], "code")[0].source
    assert "git" in code[0].source and "requirements.txt" in code[0].source
    assert max(len(cell.source.splitlines()) for cell in code[1:]) <= 16  # they call the library


def test_there_are_the_four_notebooks():
    assert [p.stem for p in NOTEBOOKS] == ["evaluate", "inspect_memories", "tour", "train"]


def test_the_install_cell_says_what_it_lacks_outside_of_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMALPHA_REPOSITORY", raising=False)
    with pytest.raises(ValueError, match="set REPOSITORY"):
        exec(cells(NOTEBOOKS[0], "code")[0].source, {})


def test_the_tour(tmp_path, monkeypatch):
    seen = execute("tour", monkeypatch, WORKDIR=tmp_path / "tour", ARGUMENTS=SMALL)
    assert "['OK', 'DUPLICATE']" in seen and "Alpina Press is in Basel" in seen
    assert "‹/new_chunk>" in seen  # the chunk did not close its tag
    assert "perfect, chunk 1: r1 1.00" in seen and "train 2/2" in seen
    assert len(read_metrics(tmp_path / "tour" / "metrics.jsonl")) == 2


def test_train_on_a_mesh_resume_then_evaluate_and_inspect(tmp_path, monkeypatch):
    run = {"WORKDIR": tmp_path / "run", "ARGUMENTS": SMALL + ",mesh.data=-1"}
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    seen = execute("train", monkeypatch, **run)
    assert "2 x cpu" in seen and "after RL" in seen and "srcdoc=" in seen
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()

    (tmp_path / "run" / "summary.json").unlink()  # as after a stop behind the first step
    last = tmp_path / "run" / "checkpoints" / "rl" / "2"
    last.rename(tmp_path / "lost")
    again = execute("train", monkeypatch, **run)
    assert last.exists() and "train 1/2" not in again and "train 2/2" in again
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == metrics

    monkeypatch.delenv("XLA_FLAGS")
    seen = execute("evaluate", monkeypatch, INSTANCES=1)
    assert seen.count("store everything") >= 3 and "rl step 2" in seen
    assert "untrained (warm start)" in seen
    seen = execute("inspect_memories", monkeypatch, STORE=tmp_path / "me.db", CHUNKS=2)
    assert "Tara Imhof" in seen and "undo" in seen and "before training" in seen
    assert (tmp_path / "run" / "timeline_inspected.html").exists()
