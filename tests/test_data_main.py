"""`python -m memalpha.data`, as a user types it."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trec_files import write_trec

from memalpha.data import built_sets, longmemeval, unread_files
from memalpha.data.__main__ import main
from memalpha.data.instance import Instance, Question


@pytest.fixture
def raw(tmp_path):
    write_trec(tmp_path / "raw", 200, 40)
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


def test_losses_and_files_not_read_are_printed_and_the_losses_written(raw, tmp_path, capsys):
    lines = "HUM:ind Who in TREC_ question 0 ?\nHUM:ind when IN TREC_ question 1\n"
    with (raw / "trec" / "train_5500.label").open("a") as file:
        file.write(lines * 2)
    for name in ("test-half2.json", "README.md", ".hidden", "downloads.json", "x.part"):
        (raw / "trec" / name).write_text("x")
    assert build(raw, tmp_path / "out") == 0
    _, losses, unread, *_ = capsys.readouterr().out.splitlines()
    losses = losses.removeprefix("trec_coarse").strip()
    assert (
        losses == "left out: 3 sentences with two classes, 2 train sentences that stand in test too"
    )
    assert unread.split() == ["trec_coarse", "files", "not", "read:", "test-half2.json"]
    for split in ("train", "test"):
        manifest = built_sets.Built(tmp_path / "out" / "trec_coarse" / split).manifest
        assert manifest["description"]["left_out"] == {
            "train sentences that stand in test too": 2,
            "sentences with two classes": 3,
        }
    assert main(["inspect", str(tmp_path / "out" / "trec_coarse" / "train")]) == 0
    assert losses in capsys.readouterr().out


def test_files_that_another_source_of_the_folder_reads_are_not_named(tmp_path):
    folder = tmp_path / "longmemeval"
    folder.mkdir()
    names = ("longmemeval_oracle.json", "longmemeval_s_cleaned.json", "longmemeval_m.json")
    for name in names:
        (folder / name).write_text("[]")
    records = longmemeval.Histories("lme_train", (), {names[0]: ""})
    assert unread_files("lme_train", tmp_path, records) == ["longmemeval_m.json"]


def test_inspect_of_a_stratified_set_names_the_counter_and_few_of_many_files(tmp_path, capsys):
    instances = []
    for i in range(3):
        files = {f"fold{n:03}.csv": "0" * 64 for n in range(640)}
        question = Question("When?", ("a",), "2023/05/20 (Sat) 02:21")
        instances.append(Instance("squad", f"s{i}", ("a b",), (question,), {"files": files}))
    built_sets.write(tmp_path / "squad" / "train", instances, {}, len)
    command = ["stratify", f"--built={tmp_path}", f"--out={tmp_path / 's'}", "--subset=squad=2"]
    assert main(command) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "s")]) == 0
    printed = capsys.readouterr().out
    assert "tokens counted by approximate\n" in printed and "None" not in printed
    assert printed.count("sha256") == 10 and "and 630 more, in manifest.json" in printed
    assert "Q: [asked at 2023/05/20 (Sat) 02:21] When?" in printed
    built_sets.write(tmp_path / "a", instances, {"source": "squad", "split": "train"}, len)
    assert main(["inspect", str(tmp_path / "a")]) == 0
    assert "counted by a counter that the build does not name" in capsys.readouterr().out


def test_a_reader_that_stops_reading_is_no_error(raw, tmp_path):
    assert build(raw, tmp_path / "out", "--split=train") == 0
    folder = tmp_path / "out" / "trec_coarse" / "train"
    inspect = subprocess.Popen(
        [sys.executable, "-m", "memalpha.data", "inspect", str(folder), "--letters=1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    inspect.stdout.close()  # as `| head -0`: before anything is written
    assert inspect.stderr.read() == b"" and inspect.wait() == 0


def test_a_tilde_in_a_path_is_the_home_folder(raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(raw)
    assert build("~/raw", "~/out", "--split=train") == 0
    assert main(["inspect", "~/out/trec_coarse/train"]) == 0
    assert main(["leakage", "~/out/trec_coarse/train", "~/out/trec_coarse/train"]) == 0
    command = ["stratify", "--built=~/out", "--out=~/sub", "--subset=trec_coarse=1"]
    assert main(command) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw", "sub"]
    assert [path.name for path in raw.iterdir()] == ["trec"]
    assert main(["build", "--parquet=~/a.parquet", "--out=~/b"]) == 1
    assert f"{tmp_path / 'a.parquet'}: no such file" in capsys.readouterr().err


def test_the_length_asked_for_wins_over_that_of_the_paper():
    from memalpha.data.__main__ import _parser, _sizes

    def target(*arguments, source="longmemeval_s"):
        args = _parser().parse_args(["build", f"--source={source}", "--out=x", *arguments])
        return _sizes(args, source, "test").options.get("target_tokens")

    for source, tokens in (("longmemeval_s", 347_880), ("ruler_qa1", 216_702)):
        assert target(source=source) == target("--questions=3", source=source) == tokens
        assert target("--target_tokens=9000", "--chunks=3", source=source) == 9000
        assert target("--chunks=3", source=source) == 0
    assert target(source="squad") is None and target("--target_tokens=9", source="squad") is None


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
