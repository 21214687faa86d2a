"""Reading published files a record at a time, and cutting long texts: what is refused, and how."""

import io
import json
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memalpha.data import cut, files, nlu, squad, surrogates, text, trec
from memalpha.data.sizes import Sizes


def count_words(string):
    return len(string.split())


def test_lines_count_from_one_and_lose_only_their_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\n two\x85 \x1c\u00e9".encode())
    assert list(files.lines(path)) == [(1, "one"), (2, ""), (3, " two\x85 \x1c\u00e9")]


def test_a_line_that_is_too_long_is_refused_without_being_read(tmp_path):
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.write(b"short\n")
        file.seek(100_000_000, 1)  # a hole: 100 MB that take no place on the disk
        file.write(b"\n")
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a\.txt: line 2 is longer than 1,000,000 bytes"):
        list(files.lines(path, limit=1_000_000))
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    with pytest.raises(ValueError, match=r"line 2 is longer than 67,108,864 bytes"):
        list(files.lines(path))


# Half a surrogate pair, which JSON can hold and UTF-8 cannot

HALVES = ["\\ud83d", "\\uDE00", "\\ud83d\\ud83d", "\\ude00\\ud83d"]
WHOLE = ["\\ud83d\\ude00", "\\\\ud83d", "\\u00e9", "\u2028\x85"]


@pytest.mark.parametrize("escape", HALVES + WHOLE)
@pytest.mark.parametrize("kind", ["json", "jsonl", "whole"])
def test_half_a_surrogate_pair_is_cleaned_in_every_kind_of_file(tmp_path, escape, kind):
    path = tmp_path / f"a.{kind}"
    record = f'{{"a": [1, "x{escape}"], "b": {{"c": "{escape}y"}}}}'
    path.write_text(record + "\n" if kind == "jsonl" else f"[{record}]", encoding="utf-8")
    expected = re.sub("[\ud800-\udfff]", "\ufffd", json.loads(f'"{escape}"'))

    def read():
        if kind == "whole":
            return text.read_json(path)[0]
        records = files.json_records if kind == "json" else files.jsonl_records
        return [row for _, row in records(path)]

    if escape in HALVES:
        place = {"json": "record 0", "jsonl": "line 1", "whole": r"a\.whole\[0\]"}[kind]
        with pytest.warns(UserWarning, match=rf"{place}\['a'\]\[1\]: half of a surrogate pair"):
            rows = read()
    else:
        rows = read()
    assert rows == [{"a": [1, f"x{expected}"], "b": {"c": f"{expected}y"}}]


@given(
    st.lists(st.sampled_from([*HALVES, *WHOLE, "\\\\", "\\n", '\\"', "a", "\u00e9"]), max_size=30),
    st.integers(1, 40),
)
def test_escapes_are_understood_wherever_a_block_ends(parts, size):
    raw = '["' + "".join(parts) + '"]'
    source, blocks = files._Escapes(io.BytesIO(raw.encode())), []
    while block := source.read(size):
        blocks.append(block)
    (expected,), (read,) = json.loads(raw), json.loads(b"".join(blocks))
    assert read == re.sub("[\ud800-\udfff]", surrogates.LOST_HALF, expected)


def test_half_a_surrogate_pair_in_a_key_is_cleaned():
    with pytest.warns(UserWarning, match="x: 3"):
        cleaned = surrogates.clean_surrogates({"a\ud800": 1}, "x: 3")
    assert cleaned == {"a\ufffd": 1}
    same = {"a": [None, 1.5, "\U0001f600"]}
    assert surrogates.clean_surrogates(same, "x") is same


def test_a_squad_context_cut_in_an_emoji_is_read_and_its_offsets_stay(tmp_path):
    context = "A cat \ud83d sat on Mount Rigi."
    answer = {"answer_start": context.index("Mount"), "text": "Mount Rigi"}
    question = {"id": "q", "question": "Where?", "answers": [answer]}
    article = {"title": "T", "paragraphs": [{"context": context, "qas": [question]}]}
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"data": [article]}))
    place = r"train\.json\['data'\]\[0\]\['paragraphs'\]\[0\]\['context'\]: half"
    with pytest.warns(UserWarning, match=place):
        records = squad.load([path])
    (paragraph,) = records.paragraphs
    assert paragraph.context == "A cat \ufffd sat on Mount Rigi."
    (draft,) = squad.build(records, paragraph.split, Sizes(1, 1, 60, 9), 0, count_words)
    assert draft.questions[0].answers == ("Mount Rigi",)
    assert "".join(draft.chunks).encode()


@pytest.mark.parametrize("name", ["train_5500.label", "TREC_10.label"])
def test_trec_in_one_line_of_100_mb(tmp_path, name):
    (tmp_path / "trec").mkdir()
    for other in ("train_5500.label", "TREC_10.label"):
        (tmp_path / "trec" / other).write_bytes(b"HUM:ind Who ?\n")
    (tmp_path / "trec" / name).write_bytes(b"HUM:ind Who ?\nHUM:ind " + b"a" * 100_000_000)
    with pytest.raises(ValueError, match=rf"{name}: line 2: 100,000,000 characters"):
        trec.load_folder(tmp_path)


@pytest.mark.parametrize("head", ["text,label\n", "text,label"])
def test_nlu_in_one_line(tmp_path, head):
    (tmp_path / "nlu").mkdir()
    (tmp_path / "nlu" / "a.csv").write_text(head + "a" * 200_000 + ",b\n")
    line = 1 + head.count("\n")
    with pytest.raises(ValueError, match=rf"a\.csv: line {line}: field larger than field limit"):
        nlu.load_folder(tmp_path)


def test_lines_must_be_utf_8(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xc3\xa9\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"a\.txt: line 2: not UTF-8"):
        list(files.lines(path))


def test_jsonl_names_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2\n')
    with pytest.raises(ValueError, match=r"a\.jsonl: line 3: not valid JSON .* cut off"):
        list(files.jsonl_records(path))


def test_json_records_stream_and_name_their_number(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, {"a": 2.5}]')
    records = list(files.json_records(path))
    assert records == [(f"{path}: record 0", {"a": 1}), (f"{path}: record 1", {"a": 2.5})]
    path.write_text('{"data": [{"a": 1}]}')
    assert [record for _, record in files.json_records(path, "data.item")] == [{"a": 1}]
    with pytest.raises(ValueError, match=r"a\.json: no records; a list is expected"):
        list(files.json_records(path))


@pytest.mark.parametrize("content", [b'[{"a": 1}, {"a": ', b'[{"a": 1}, {"a": "caf\xe9"}]'])
def test_json_that_is_cut_off_or_no_utf_8(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json: record 1: not valid JSON \([^b]"):
        list(files.json_records(path))


def test_a_json_file_is_not_read_as_a_whole(tmp_path):
    path = tmp_path / "a.json"
    record = json.dumps({"text": "x" * 1000})
    path.write_text("[" + ",".join([record] * 20_000) + "]")  # 20 MB in one line
    tracemalloc.start()
    assert sum(len(r["text"]) for _, r in files.json_records(path)) == 20_000_000
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_csv_fields_may_go_over_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,category\n"a\nb, c",one\nd,two\n')
    rows = [row for _, row in files.csv_records(path, ("text", "category"))]
    assert rows == [{"text": "a\nb, c", "category": "one"}, {"text": "d", "category": "two"}]


@pytest.mark.parametrize(
    "content, named",
    [
        (b"text,label\na,b\n", "column 'category' is missing"),
        (b"text,category\na,b\nc\n", r"record 2 \(ends in line 3\): 2 fields are expected"),
        (b"text,category\na,b,c\n", "record 1 .*: 2 fields are expected"),
        (b"text,category\n ,b\n", "record 1 .*: column 'text' is empty"),
        (b"text,category\na,b\ncaf\xe9,b\n", "not UTF-8"),
        (b'text,category\na,"b\n', "after record 0: "),
        (b"text,category\n" + b"a" * 200_000 + b",b\n", "field larger than field limit"),
    ],
)
def test_csv_that_is_refused(tmp_path, content, named):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.csv: .*{named}"):
        list(files.csv_records(path, ("text", "category")))


@pytest.mark.parametrize(
    "content, named",
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_digest_refuses_what_is_no_file(tmp_path, content, named):
    path = tmp_path / "a"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=named):
        files.digest(path)


def test_digest_is_sha_256(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert files.digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_items_of_the_lowest_hashes_do_not_depend_on_their_order():
    items = [(str(i), []) for i in range(50)]
    lowest, total = text.lowest(items, 5, lambda item: text.rank("x", item[0]))
    assert len(lowest) == 5 and total == 50
    assert text.lowest(reversed(items), 5, lambda item: text.rank("x", item[0])) == (lowest, 50)
    assert lowest != items[:5]
    assert text.lowest(iter(items[:3]), 5, lambda item: text.rank("x", item[0]))[1] == 3


# Cutting


def test_a_text_is_cut_after_sentences():
    passage = "One two three. Four five. Six seven eight nine."
    assert list(cut.pieces(passage, 100, count_words)) == [passage]
    assert list(cut.pieces(passage, 5, count_words)) == [
        "One two three. Four five.",
        "Six seven eight nine.",
    ]


def test_a_sentence_that_is_too_long_is_cut_between_words_and_a_word_in_halves():
    assert list(cut.pieces("a b c d e f g", 3, count_words)) == ["a b c", "d e f", "g"]
    assert list(cut.pieces("abcdefgh", 2, len)) == ["ab", "cd", "ef", "gh"]
    with pytest.raises(ValueError, match="'a' alone has more than 0 tokens"):
        list(cut.pieces("ab", 0, len))


def test_groups_are_full_and_whole():
    parts = ["a b", "c", "d e f", "g h i j k", "l"]
    assert list(cut.fill(parts, 4, count_words, " ")) == [
        ["a b", "c"],
        ["d e f"],
        ["g h i j k"],  # too long alone
        ["l"],
    ]


@given(
    st.lists(st.text(alphabet="ab. !?\n", max_size=60), max_size=8),
    st.integers(min_value=1, max_value=12),
)
def test_nothing_is_lost_and_no_piece_is_too_long(passages, limit):
    parts = [piece for p in passages for piece in cut.pieces(p, limit, len)]
    assert all(0 < len(part) <= limit for part in parts)
    assert "".join("".join(parts).split()) == "".join("".join(passages).split())
    groups = list(cut.fill(parts, limit, len, " "))
    assert [part for group in groups for part in group] == parts
    assert all(len(" ".join(group)) <= limit for group in groups)


@pytest.mark.parametrize(
    "words, tokens",
    [("Two words", 2), ("in 1984,", 6), ("a_b\n", 4), ("caf\u00e9", 1), ("\u4e2d\u6587 x", 3)],
)
def test_approximate_tokens(words, tokens):
    assert text.approximate_tokens(words) == tokens
