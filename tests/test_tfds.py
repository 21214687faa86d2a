"""The TFDS builder: what is read back is what was built, without TensorFlow."""

import subprocess
import sys

import pytest

from memalpha.data import load_source, text
from memalpha.data.sizes import Sizes

pytest.importorskip("tensorflow_datasets")
tfds_builder = pytest.importorskip("memalpha.data.tfds_builder")


@pytest.fixture
def raw_dir(tmp_path):
    folder = tmp_path / "raw" / "trec"
    folder.mkdir(parents=True)
    lines = [f"{c} What caf\xe9 number {i} ?" for i in range(30) for c in ("HUM:ind", "LOC:city")]
    (folder / "train_5500.label").write_bytes("\n".join(lines[:-1]).encode("latin-1"))
    (folder / "TREC_10.label").write_text("HUM:ind Who else ?\n")
    return folder.parent


def test_what_is_read_back_is_what_was_built(raw_dir, tmp_path):
    # Two classes of the same sentences would be dropped: give each class its own words.
    path = raw_dir / "trec" / "train_5500.label"
    path.write_bytes(path.read_bytes().replace(b"LOC:city What", b"LOC:city Where"))
    sizes = {"train": Sizes(3, 2, 60, 4)}
    config = tfds_builder.SourceConfig(name="small", source="trec_coarse", sizes=sizes)
    builder = tfds_builder.Memalpha(config=config, data_dir=str(tmp_path / "out"))
    tfds_builder.prepare(builder, raw_dir)
    rows = builder.as_data_source(split="train")
    expected = load_source(
        "trec_coarse", raw_dir, "train", sizes["train"], 0, text.approximate_tokens
    )
    assert "caf\xe9" in expected[0].chunks[0]
    assert [tfds_builder.to_instance(row) for row in rows] == expected
    assert list((tmp_path / "out").rglob("*.array_record*"))
    # A new builder finds what is prepared.
    again = tfds_builder.Memalpha(config=config, data_dir=str(tmp_path / "out"))
    assert len(again.as_data_source(split="train")) == 3


def test_every_source_is_a_config():
    from memalpha.data import SOURCES

    assert list(tfds_builder.Memalpha.builder_configs) == list(SOURCES)


def test_no_tensorflow_is_loaded():
    code = "import sys, memalpha.data.tfds_builder; print('tensorflow' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
