"""Keywords by rule and by a model: what counts as one, and that nothing is asked twice."""

import json

import pytest

from memalpha import scoring
from memalpha.data import keywords

SUMMARY = (
    "Suddenly the young Ann Lee leaves Lund with Otto's brother, Dr. Carl von Essen. In the"
    " House of Mirrors she inherits a lighthouse. Nevertheless Otto stays."
)


def test_names_and_phrases_then_rare_words():
    (found,) = keywords.offline_keywords([SUMMARY])
    names = ["Ann Lee", "Lund", "Otto", "Carl von Essen", "House of Mirrors"]
    assert found[: len(names)] == names
    assert "lighthouse" in found and "inherits" in found
    assert not {"Suddenly", "Nevertheless", "In", "the", "she", "with"} & set(found)
    assert all(word.lower() in SUMMARY.lower() for word in found)
    assert len(found) <= len(names) + keywords.OFFLINE_RARE
    assert keywords.offline_keywords([SUMMARY, ""]) == [found, []]


def test_the_perfect_summary_has_all_keywords():
    (found,) = keywords.offline_keywords([SUMMARY])
    assert scoring.score("booksum", SUMMARY, found) == 1
    assert 0 < scoring.score("booksum", "Ann Lee is in Lund.", found) < 1


@pytest.mark.parametrize(
    "reply, expected",
    [
        ("Ann Lee, Lund, lighthouse", ["Ann Lee", "Lund", "lighthouse"]),
        ("<think>Otto, Lund</think>Keywords: Lund; \n- 'Otto'.\n* lund", ["Lund", "Otto"]),
        ("Paris, Ann Lee", ["Ann Lee"]),  # not in the summary
        (SUMMARY.replace(",", ""), []),  # a sentence is no keyword
        ("", []),
        ("Lund,Ann Lee,1,2 lighthouse", ["Lund", "Ann Lee"]),
    ],
)
def test_replies_are_parsed(reply, expected):
    assert keywords.parse_keywords(reply, SUMMARY) == expected


def test_a_comma_inside_a_number_separates_nothing():
    summary = "In 1810 he won 10,000 francs, then 2,500."
    reply = "1810,10,000 francs, 2,500;won"
    expected = ["1810", "10,000 francs", "2,500", "won"]
    assert keywords.parse_keywords(reply, summary) == expected
    assert keywords.parse_keywords("1810, 10,000 francs", summary) == ["1810", "10,000 francs"]


# Marks at which str.splitlines also ends a line, and half a surrogate pair.
@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\r", "\ufffd"])
def test_a_summary_with_any_mark_is_read_back(tmp_path, mark):
    cache = tmp_path / "keywords.jsonl"
    summary = f"Ann{mark}left for Lund."
    found = keywords.lm_keywords([summary], Model("Lund"), cache)
    assert keywords.lm_keywords([summary], Model(), cache) == found == [["Lund"]]


def test_half_a_surrogate_pair_in_a_summary_or_a_reply_can_be_kept(tmp_path):
    cache = tmp_path / "keywords.jsonl"
    summary = "Ann left \ud83d Lund."
    with pytest.warns(UserWarning, match="half of a surrogate pair"):
        found = keywords.lm_keywords([summary], Model("Lund, left \ud83d"), cache)
    assert found == [["Lund", "left \ufffd"]]
    assert keywords.lm_keywords([summary], Model(), cache) == found


class Model:
    def __init__(self, *replies):
        self.replies, self.prompts = list(replies), []

    def __call__(self, prompts):
        self.prompts += prompts
        return [self.replies.pop(0) for _ in prompts]


def test_a_model_is_asked_once_a_summary(tmp_path):
    cache = tmp_path / "keywords.jsonl"
    model = Model("Lund, Otto", "Oslo")
    other = "A tale of Oslo {x}."
    found = keywords.lm_keywords([SUMMARY, other, SUMMARY], model, cache)
    assert found == [["Lund", "Otto"], ["Oslo"], ["Lund", "Otto"]]
    assert len(model.prompts) == 2 and all(
        text in prompt for text, prompt in zip((SUMMARY, other), model.prompts, strict=True)
    )
    before = cache.read_bytes()
    assert keywords.lm_keywords([other, SUMMARY], Model(), cache) == [["Oslo"], ["Lund", "Otto"]]
    assert cache.read_bytes() == before
    again = Model("Ann Lee")  # another prompt is another question
    assert keywords.lm_keywords([SUMMARY], again, cache, "List: {summary}") == [["Ann Lee"]]
    assert again.prompts == [f"List: {SUMMARY}"]
    assert len(cache.read_text().splitlines()) == 3


def test_good_replies_are_kept_when_others_fail(tmp_path):
    cache = tmp_path / "keywords.jsonl"
    other = "A tale of Oslo."
    with pytest.raises(ValueError, match="no keyword in the replies to 1 of 2 .*'A tale of Oslo"):
        keywords.lm_keywords([SUMMARY, other], Model("Lund", None), cache)
    model = Model("Oslo")
    assert keywords.lm_keywords([SUMMARY, other], model, cache) == [["Lund"], ["Oslo"]]
    assert len(model.prompts) == 1
    with pytest.raises(ValueError, match="1 prompts but 0 replies"):
        keywords.lm_keywords(["new"], lambda prompts: [], cache)


def test_a_damaged_cache_names_its_line(tmp_path):
    cache = tmp_path / "keywords.jsonl"
    keywords.lm_keywords([SUMMARY], Model("Lund"), cache)
    cache.write_text(cache.read_text() + json.dumps({"key": "x"}) + "\n")
    with pytest.raises(ValueError, match=r"keywords\.jsonl: line 2 is no keyword row"):
        keywords.lm_keywords([SUMMARY], Model(), cache)
