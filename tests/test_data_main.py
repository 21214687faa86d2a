"""`python -m memalpha.data`, as a user types it."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memalpha.data import built_sets
from memalpha.data.__main__ import main


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw" / "trec"
    folder.mkdir(parents=True)
    words = {"HUM:ind": "Who", "LOC:city": "Where", "NUM:date": "When"}
    for name, count in (("train_5500.label", 200), ("TREC_10.label", 40)):
        lines = [
            f"{label} {word} in {name[:5]} question {i} ?"
            for i in range(count)
            for label, word in words.items()
        ]
        (folder / name).write_text("\n".join(lines) + "\n")
    return tmp_path / "raw"


def build(raw, out, *more):
    sizes = ["--count=3", "--chunks=3", "--chunk_tokens=90", "--questions=9"]
    return main(
        ["build", "--source=trec_coarse", f"--raw_dir={raw}", f"--out={out}", *sizes, *more]
    )


def test_build_then_inspect(raw, tmp_path, capsys):
    out = tmp_path / "out"
    assert build(raw, out) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in table[1:]] == [
        ["trec_coarse", split] for split in ("train", "validation", "test")
    ]
    assert "3 (51)" in table[1] and "3.0 (10)" in table[1] and "(390.1)" in table[1]
    assert main(["inspect", str(out / "trec_coarse" / "train"), "--instance=1"]) == 0
    shown = capsys.readouterr().out
    instance = built_sets.Built(out / "trec_coarse" / "train")[1]
    assert instance.instance_id in shown and instance.chunks[0] in shown
    assert "train_5500.label  sha256 " in shown and "[in the text]" in shown
    assert instance.questions[0].question in shown


def test_the_same_command_gives_the_same_bytes_in_another_process(raw, tmp_path):
    for name in "ab":
        command = [sys.executable, "-m", "memalpha.data", "build", "--source=trec_coarse"]
        command += [f"--raw_dir={raw}", f"--out={tmp_path / name}", "--split=train", "--count=2"]
        subprocess.run([*command, "--chunks=2", "--chunk_tokens=80"], check=True)
    for file in ("instances.jsonl", "manifest.json"):
        one, two = ((tmp_path / n / "trec_coarse" / "train" / file).read_bytes() for n in "ab")
        assert one == two and str(tmp_path).encode() not in one


def test_seed_overwrite_and_shrink(raw, tmp_path, capsys):
    out = tmp_path / "out"
    assert build(raw, out, "--split=train") == 0
    first = built_sets.Built(out / "trec_coarse" / "train")[0]
    assert build(raw, out, "--split=train", "--seed=1") == 1
    assert "is there already" in capsys.readouterr().err
    assert build(raw, out, "--split=train", "--seed=1", "--overwrite") == 0
    assert built_sets.Built(out / "trec_coarse" / "train")[0].chunks != first.chunks
    big = ["--split=test", "--chunks=500", "--overwrite"]
    assert build(raw, out, *big) == 1
    assert "fill" in capsys.readouterr().err
    assert build(raw, out, *big, "--shrink") == 0
    assert 3 < len(built_sets.Built(out / "trec_coarse" / "test")[0].chunks) < 500


def test_all_builds_what_is_there_and_says_what_is_not(raw, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["build", "--source=all", f"--raw_dir={raw}", f"--out={out}", "--shrink"]
    assert main([*command, "--count=1", "--split=train"]) == 0
    shown = capsys.readouterr().out
    assert "hotpotqa" in shown and "not built: " in shown
    assert sorted(p.name for p in out.iterdir()) == ["trec_coarse", "trec_fine"]


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--source=squat"], "unknown data source 'squat'; known: squad"),
        (["--source=squad", "--split=dev"], "unknown split 'dev'"),
        (["--source=squad"], "squad: no train"),
        ([], "--source: name one of squad"),
        (["--parquet=x.parquet"], "give either --raw_dir or --parquet"),
    ],
)
def test_wrong_commands_say_why(raw, tmp_path, capsys, arguments, named):
    assert main(["build", f"--raw_dir={raw}", f"--out={tmp_path / 'out'}", *arguments]) == 1
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_parquet_stratify_and_leakage(tmp_path, capsys):
    rows = [
        {
            "chunks": [
                f"The {source} answer {i} is here, in a chunk that is long enough to compare."
            ],
            "questions_and_answers": [{"question": f"{source} {i}?", "answer": f"answer {i}"}],
            "data_source": source,
        }
        for source in ("squad", "perltqa")
        for i in range(5)
    ]
    out = tmp_path / "out"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    parquet = f"--parquet={tmp_path / 'train.parquet'}"
    assert main(["build", parquet, f"--out={out}"]) == 0
    assert "5 (100)" in capsys.readouterr().out
    subset = ["--subset=squad=3,perltqa=2", "--seed=4"]
    assert main(["stratify", f"--built={out}", f"--out={out / 'subset'}", *subset]) == 0
    assert len(built_sets.Built(out / "subset")) == 5
    assert main(["stratify", f"--built={out}", f"--out={out / 'b'}", "--subset=squad"]) == 1
    capsys.readouterr()
    assert main(["leakage", str(out / "squad" / "train"), str(out / "subset")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("3 of 5 questions and 3 of 5 paragraphs are in training too")


def test_keywords_come_from_the_file_or_are_missed(tmp_path, capsys):
    raw = tmp_path / "raw" / "booksum"
    raw.mkdir(parents=True)
    row = {
        "bid": 1,
        "chapter_id": "c",
        "text": "Ann is here. " * 300,
        "summary": [{"text": "Ann."}],
    }
    (raw / "train.jsonl").write_text(json.dumps(row) + "\n")
    command = ["build", "--source=booksum", f"--raw_dir={raw.parent}", "--split=train"]
    command += [f"--out={tmp_path / 'out'}", "--chunk_tokens=200", f"--keywords={tmp_path / 'k'}"]
    assert main(command) == 1
    assert "1 summaries are not in the keyword file" in capsys.readouterr().err
    from memalpha.data.keywords import lm_keywords

    lm_keywords(["Ann."], lambda prompts: ["Ann"], tmp_path / "k")
    assert main(command) == 0
    built = built_sets.Built(tmp_path / "out" / "booksum" / "train")
    assert built[0].questions[0].answers == ("Ann",)
    assert built[0].metadata["keywords"] == "given"


def test_download_without_a_network_says_what_to_do(tmp_path, capsys, monkeypatch):
    from memalpha.data import download

    remotes = {"squad": (download.Remote("http://127.0.0.1:9/x.json", "squad/x.json"),)}
    monkeypatch.setattr(download, "REMOTES", remotes)
    assert main(["download", "--source=squad", f"--out={tmp_path}"]) == 1
    assert f"put it at {tmp_path / 'squad' / 'x.json'}" in capsys.readouterr().err
    assert main(["download", "--source=squat", f"--out={tmp_path}"]) == 1
    assert "nothing to fetch for 'squat'; known: squad" in capsys.readouterr().err
