"""The small tokenizer: it loses nothing, and holds the phrases of the prompts as single tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memalpha.data import synthetic
from memalpha.tokenizer import (
    EOS_TOKEN,
    PAD_TOKEN,
    decode,
    encode,
    load_tokenizer,
    train_tokenizer,
)
from memalpha.tools import format_call, parse_calls

CORPUS = ["The pet of Anna Berger is a parrot. It was 2019/03/14, 07:45."] * 3
PHRASES = ["<core_memory>", "<core_memory><memory_entry>", "\n<User>\n", "naïve ☃"]
SMALL = train_tokenizer(CORPUS, 300, PHRASES)
ODD = [
    "",
    " ",
    "\n\n",
    "a  b\t c ",
    "x\r\ny",
    "\x00\x1b\x7f",
    "日本語 кириллица العربية",
    "👩‍👩‍👧",
    "\ufeff ",
]
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)  # all but lone surrogates


@settings(max_examples=200, deadline=None)
@given(st.one_of(text, st.lists(st.sampled_from([*PHRASES, *ODD, "1234567"])).map("".join)))
def test_any_text_round_trips(words):
    assert decode(SMALL, encode(SMALL, words)) == words


@pytest.mark.parametrize("words", ODD)
def test_odd_text_round_trips(words, micro):
    assert decode(micro.tokenizer, encode(micro.tokenizer, words)) == words


def test_a_phrase_is_one_token_wherever_it_stands(micro):
    tokenizer = micro.tokenizer
    for phrase in micro.phrases:
        (token,) = encode(tokenizer, phrase)
        assert decode(tokenizer, [token]) == phrase
    assert len(encode(SMALL, "<core_memory><memory_entry>")) == 1  # the longest match wins
    both = encode(SMALL, "<core_memory><core_memory><memory_entry>")
    assert [decode(SMALL, [t]) for t in both] == PHRASES[:2]
    inside = encode(SMALL, "parrot<core_memory>parrot")
    beside = encode(SMALL, "parrot")  # text beside a phrase is encoded as if alone
    assert inside == [*beside, *encode(SMALL, "<core_memory>"), *beside]


def test_a_call_costs_little_more_than_its_content(micro):
    content = "The pet of Anna Berger is a parrot."
    arguments = {"memory_type": "semantic", "content": content}
    call = format_call("new_memory_insert", arguments, "qwen3")
    ids = encode(micro.tokenizer, call)
    assert len(ids) <= len(encode(micro.tokenizer, content)) + 4
    assert parse_calls(decode(micro.tokenizer, ids), "qwen3")[0].arguments == arguments


def test_special_tokens_are_apart_from_text(micro):
    tokenizer = micro.tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == EOS_TOKEN
    assert tokenizer.convert_ids_to_tokens(tokenizer.pad_token_id) == PAD_TOKEN
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert decode(tokenizer, [*encode(tokenizer, "ab"), tokenizer.eos_token_id]) == "ab"


@pytest.mark.parametrize("marks", [["<tool_call>", "</tool_call>"], ["<think>", "</think>\n"]])
def test_marks_that_are_special_tokens_stay_in_the_text(marks, tmp_path):
    tokenizer = train_tokenizer(CORPUS, 300)
    tokenizer.add_special_tokens({"additional_special_tokens": [*marks, "<|turn|>"]})
    tokenizer.save_pretrained(tmp_path)
    words = f"parrot {marks[0]} {{ é☃}} {marks[1]} <|turn|>x"
    for each in (tokenizer, load_tokenizer(str(tmp_path))):
        ids = encode(each, words)
        assert each.convert_tokens_to_ids(marks[0]) in ids
        assert marks[0] not in each.decode(ids, skip_special_tokens=True)
        assert decode(each, [*ids, each.eos_token_id]) == words.replace("<|turn|>", "")
        assert decode(each, []) == ""


def test_numbers_come_in_pieces_of_at_most_four_digits():
    digits = train_tokenizer(["20190314 " * 50], 400)
    pieces = [decode(digits, [t]) for t in encode(digits, "20190314")]
    assert "".join(pieces) == "20190314"
    assert max(map(len, pieces)) <= 4 and len(pieces) >= 2


def test_vocabulary_size_is_an_upper_bound():
    corpus = synthetic.generate("facts", "train", 0, chunks=20).chunks
    assert len(train_tokenizer(corpus, 300, PHRASES)) == 300
    assert len(train_tokenizer(["ab"], 5000)) < 5000
    assert len(train_tokenizer(["ab"], 258 + len(PHRASES), PHRASES)) == 258 + len(PHRASES)


def test_too_small_a_vocabulary_says_what_is_needed():
    with pytest.raises(ValueError, match="vocab_size 261 .* 4 phrases; give at least 262"):
        train_tokenizer(CORPUS, 261, PHRASES)


def test_training_is_deterministic():
    again = train_tokenizer(CORPUS, 300, list(reversed(PHRASES)))  # phrases are a set
    assert again.get_vocab() == SMALL.get_vocab()


def test_a_saved_tokenizer_gives_the_same_ids(tmp_path, micro):
    micro.tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.get_vocab() == micro.tokenizer.get_vocab()
    assert loaded.eos_token_id == micro.tokenizer.eos_token_id
    assert loaded.pad_token_id == micro.tokenizer.pad_token_id
    for words in [*ODD, *CORPUS, "".join(micro.phrases), f"a{EOS_TOKEN}b"]:
        ids = encode(micro.tokenizer, words)
        assert encode(loaded, words) == ids
        assert decode(loaded, ids) == decode(micro.tokenizer, ids)


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"the folder '{tmp_path}'"):
        load_tokenizer(str(tmp_path))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"missing folder\) '.*nowhere'"):
        load_tokenizer(str(tmp_path / "nowhere"))
