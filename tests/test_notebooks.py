"""The notebooks of colab/: as they are kept, and executed from end to end in a small mode."""

import re
from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient

from experiments.lib.workdir import read_metrics
from memalpha.model import init_params
from memalpha.weights import export

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


def execute(names, monkeypatch, between=None, **variables):
    """Executes notebooks one after the other in one kernel; returns {name: all that its cells put
    out, as one text}. `between`: name -> code that runs before that notebook."""
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    for variable, value in variables.items():
        monkeypatch.setenv(f"MEMALPHA_{variable}", str(value))
    book, starts = nbformat.v4.new_notebook(), {}
    for name in names:
        starts[name] = len(book.cells)
        code = f"os.chdir({str(ROOT / 'colab')!r})\n" + (between or {}).get(name, "")
        book.cells += [nbformat.v4.new_code_cell("import os\n" + code)]
        book.cells += nbformat.read(ROOT / "colab" / f"{name}.ipynb", 4).cells
    NotebookClient(book, timeout=600, kernel_name="python3").execute()
    ends = [*starts.values(), len(book.cells)][1:]
    return {
        name: "\n".join(text for cell in book.cells[starts[name] : end] for text in texts(cell))
        for name, end in zip(names, ends, strict=True)
    }


def texts(cell):
    for output in cell.get("outputs", ()):
        yield output.get("text", "")
        yield from map(str, output.get("data", {}).values())


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


def test_there_are_the_five_notebooks():
    names = ["evaluate", "inspect_memories", "smollm2", "tour", "train"]
    assert [p.stem for p in NOTEBOOKS] == names


def test_the_install_cell_says_what_it_lacks_outside_of_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMALPHA_REPOSITORY", raising=False)
    with pytest.raises(ValueError, match="set REPOSITORY"):
        exec(cells(NOTEBOOKS[0], "code")[0].source, {})


STOP = """
import shutil
from pathlib import Path
run = Path(os.environ["MEMALPHA_WORKDIR"])
shutil.copy(run / "metrics.jsonl", run / "metrics_before.jsonl")
(run / "checkpoints" / "rl" / "2").rename(run / "lost")  # as after a stop behind the first step
"""


def test_all_four_one_after_the_other_on_one_run(tmp_path, monkeypatch):
    """The tour trains on a mesh of two; the training notebook finds a run that was stopped after
    its first step and continues it; the others read what it left."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    run = tmp_path / "run"
    seen = execute(
        ["tour", "train", "evaluate", "inspect_memories"],
        monkeypatch,
        between={"train": STOP},
        WORKDIR=run,
        ARGUMENTS=SMALL + ",mesh.data=-1",
        INSTANCES=1,
        STORE=tmp_path / "me.db",
        CHUNKS=2,
    )
    tour, train = seen["tour"], seen["train"]
    assert "['OK', 'DUPLICATE']" in tour and "Alpina Press is in Basel" in tour
    assert "‹/new_chunk>" in tour  # the chunk did not close its tag
    assert "perfect, chunk 1: r1 1.00" in tour and "train 2/2" in tour
    assert "2 x cpu" in train and "after RL" in train and "srcdoc=" in train
    assert (run / "checkpoints" / "rl" / "2").exists()
    assert "train 1/2" not in train and "train 2/2" in train
    assert len(read_metrics(run / "metrics.jsonl")) == 2
    assert (run / "metrics.jsonl").read_text() == (run / "metrics_before.jsonl").read_text()
    assert seen["evaluate"].count("store everything") >= 3 and "rl step 2" in seen["evaluate"]
    assert "untrained (warm start)" in seen["evaluate"]
    inspected = seen["inspect_memories"]
    assert "Tara Imhof" in inspected and "undo" in inspected and "before training" in inspected
    assert (run / "timeline_inspected.html").exists()


def test_the_pretrained_writer_on_a_small_base_model(micro, tmp_path, monkeypatch):
    """From a model folder to adapters that the agent uses; a second run only continues."""
    base = export(
        init_params(micro.model, jax.random.key(0)), micro.model, tmp_path / "base", micro.tokenizer
    )
    run = tmp_path / "run"
    small = (
        f"smoke,model.path={base},data.max_questions=2,prompt.tokens=900,prompt.response_tokens=64,"
        "memory.entry_tokens=60,rl.head_chunk=0,warm_start.steps=2"
    )
    monkeypatch.delenv("MEMALPHA_DATA_DIR", raising=False)
    first, second = (
        execute(["smollm2"], monkeypatch, WORKDIR=run, ARGUMENTS=small)["smollm2"] for _ in range(2)
    )
    sources = re.search(r"\('synthetic_chats', [^)]*\)", first)[0]
    assert "'synthetic_updates'" in sources and "squad" not in sources
    assert "synthetic_chats: r1" in first
    assert "adapter_model.safetensors" in first and "srcdoc=" in first and "train 2/2" in first
    assert "train 1/2" not in second and "synthetic_chats: r1" in second
