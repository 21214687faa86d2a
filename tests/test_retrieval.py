"""BM25 against hand-worked values and rank_bm25; ScaNN against BM25."""

import math
import re
import unicodedata

import hypothesis
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memalpha.retrieval import RETRIEVERS, BM25Index, ScannIndex, bm25, make_index, tokenize, words
from memalpha.retrieval.bm25 import count_postings
from memalpha.retrieval.scann_index import sketch_columns

FRUIT = ["apple pear", "apple plum plum", "fig", "pear fig fig date", "kiwi"]
# Few words over many short documents: repeats, duplicates and exact ties are the normal case.
WORDS = st.sampled_from("a b c d e f g".split())
TEXTS = st.lists(WORDS, max_size=6).map(" ".join)
CORPORA = st.lists(TEXTS, min_size=1, max_size=12)


def zipf_corpus(count, seed=0, words=400):
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, words + 1)
    draws = rng.choice(words, (count, 12), p=share / share.sum())
    return [" ".join(f"w{w}" for w in row) for row in draws]


# ------------------------------------------------------------------------------------- tokenize


def test_tokenize_lower_cases_word_runs():
    assert tokenize("It's Ümit_7,  at 9:30!") == ["it", "s", "ümit_7", "at", "9", "30"]
    assert tokenize(" .,! ") == []


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("小明的猫", "小明 明的 的猫 小 明 的 猫"),
        ("猫", "猫"),
        ("iPhone手机2024年", "iphone 手机 手 机 2024 年"),
        ("東京タワー", "東京 京タ タワ ワー 東 京"),
        ("แมวน้ำ ๒๕๖๗", "แม มว วน้ น้ำ ๒๕๖๗"),
        ("ກິນ", "ກິນ"),
        ("ភាសា", "ភាសា"),
        ("မြန်မာ", "မြန် န်မာ"),
        ("한국어 문장", "한국어 문장"),
        ("हिन्दी भाषा", "हिन्दी भाषा"),
        ("السَّلام عليكم", "السَّلام عليكم"),
        ("cafe\u0301 CAFÉ", "café café"),
        ("葛\U000e0100飾", "葛飾 葛 飾"),  # a variation selector chooses a picture
        ("1\ufe0f\u20e3 ok", "1 ok"),  # an emoji of a digit
        ("\u0301 a \ud83d b\ud83dc", "a b c"),
    ],
)
def test_words_of_many_scripts(text, terms):
    assert tokenize(text) == [unicodedata.normalize("NFC", term) for term in terms.split()]


ANY_TEXT = st.text(st.characters())  # lone surrogates and unassigned code points too
SCRIPTS = st.text("aÉ\u0301\u0e01\u0e34\u0e49กนคำ猫的あｶﾞ한दि् 1-2.。？\ud83d\ufe0f\u200d\u0378")


@given(ANY_TEXT | SCRIPTS)
def test_both_normal_forms_have_the_same_words(text):
    composed, apart = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert tokenize(composed) == tokenize(apart) == tokenize(text)


@given(ANY_TEXT)
def test_without_marks_and_scripts_without_spaces_words_are_word_characters(text):
    text = unicodedata.normalize("NFC", words.normalize(text).lower())
    hypothesis.assume(not words.has_no_spaces(text) and words.drop_marks(text) == text)
    assert tokenize(text) == re.findall(r"\w+", text)
    assert words.split_words(text, True) == re.findall(r"\d+(?:[-/:.,]\d+)+|\w+", text)
    assert words.spread(text) == text
    assert "".join(words.split_pieces(text)).strip() == " ".join(text.split())


@given(ANY_TEXT | SCRIPTS)
def test_pieces_join_to_the_text_with_single_spaces(text):
    pieces = words.split_pieces(text)
    assert "".join(pieces).strip() == " ".join(text.split())
    assert all(len(words.split_words(piece)) <= 3 for piece in pieces if words.has_no_spaces(piece))


def test_pieces_of_a_script_without_spaces_are_two_letters_long():
    assert words.split_pieces("小明的猫，  iPhone手机。") == [
        " 小明",
        "的猫，",
        " iPhone",
        "手机。",
    ]
    assert words.spread("2024年5月8日买") == "2024 年 5 月 8 日买 "


# ------------------------------------------------------------------------------------- scripts

CHINESE = ["小红的狗叫旺财。", "小明住在北京。", "小明的猫叫雪球。", "昨天下雨了。", "他喜欢下棋。"]
THAI = ["แมวของมานะชื่อสีดา", "มานะอยู่ที่เชียงใหม่", "สุนัขของปิติชื่อโบโบ้", "เมื่อวานฝนตก", "เขาชอบหมากรุก"]
JAPANESE = [
    "田中さんは大阪に住んでいる。",
    "鈴木さんの猫はタマです。",
    "昨日は雨だった。",
    "山田さんは医者です。",
]
ACCENTS = ["She met him at the café.", "The resume was long.", "A kayak is blue.", "It rained."]


@pytest.mark.parametrize(
    ("documents", "query", "best"),
    [
        (CHINESE, "小明的猫叫什么名字？", 2),
        (CHINESE, "小明住在哪里？", 1),
        (CHINESE, "猫", 2),
        (THAI, "สุนัขของปิติชื่ออะไร", 2),
        (THAI, "มานะอยู่ที่ไหน", 1),
        (JAPANESE, "鈴木さんの猫の名前は何ですか？", 1),
        (ACCENTS, "cafe\u0301", 0),
        ([unicodedata.normalize("NFD", text) for text in ACCENTS], "CAFÉ", 0),
    ],
)
def test_the_right_entry_comes_first_in_every_script(retriever, documents, query, best):
    ids, scores = make_index(documents, retriever).search([query], 2)
    assert ids[0, 0] == best and scores[0, 0] > max(scores[0, 1], 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(ANY_TEXT | SCRIPTS, max_size=5), ANY_TEXT | SCRIPTS)
def test_any_unicode_is_indexed_and_asked(documents, query):
    texts = [*documents, query]
    ids, scores = BM25Index(texts).search([query], 3)
    dense, dense_scores = ScannIndex(texts, dimensions=3).search([query], 3)
    count = min(3, len(texts))
    assert len({*ids[0, :count].tolist()}) == len({*dense[0, :count].tolist()}) == count
    assert np.isfinite(scores[0, :count]).all() and np.isfinite(dense_scores[0, :count]).all()


# ----------------------------------------------------------------------------------------- BM25


def test_bm25_golden():
    # N = 3, every word in one document: idf = log(2.5 / 1.5); mean length 4/3.
    ids, scores = BM25Index(["cat", "dog", "fox fox"]).search(["Fox cat"], 3)
    idf = math.log(2.5 / 1.5)
    cat = idf * 1 * 2.5 / (1 + 1.5 * (0.25 + 0.75 * 0.75))
    fox = idf * 2 * 2.5 / (2 + 1.5 * (0.25 + 0.75 * 1.5))
    assert ids.tolist() == [[2, 0, 1]]
    np.testing.assert_allclose(scores, [[fox, cat, 0]], rtol=1e-6)
    np.testing.assert_allclose(scores, [[0.628708, 0.575578, 0]], rtol=1e-5)


def test_bm25_floor_golden():
    # "a" is in 3 of 4 documents: log(1.5/3.5) < 0 becomes a quarter of the mean of the five idf.
    index = BM25Index(["a x", "a y", "a z", "b"])
    rare = math.log(3.5 / 1.5)
    floor = 0.25 * (4 * rare - rare) / 5
    np.testing.assert_allclose(index.postings.idf, [floor, rare, rare, rare, rare], rtol=1e-12)
    weight = 2.5 / (1 + 1.5 * (0.25 + 0.75 * 2 / 1.75))
    ids, scores = index.search(["a"], 4)
    assert ids.tolist() == [[0, 1, 2, 3]]
    np.testing.assert_allclose(scores, [[floor * weight] * 3 + [0]], rtol=1e-6)


def test_bm25_counts_repeated_query_words():
    index = BM25Index(FRUIT)
    once, thrice = index.scores(["plum kiwi", "plum plum kiwi plum"])
    np.testing.assert_allclose(thrice[1], 3 * once[1])
    assert thrice[4] == once[4] > 0


def reference_order(documents, query):
    """Scores and ranking of rank_bm25, ties by document order as a stable sort leaves them."""
    rank_bm25 = pytest.importorskip("rank_bm25")
    okapi = rank_bm25.BM25Okapi([tokenize(text) for text in documents])
    scores = okapi.get_scores(tokenize(query))
    return scores, sorted(range(len(documents)), key=lambda i: -scores[i])


@settings(max_examples=300, deadline=None)
@given(CORPORA, st.lists(TEXTS, min_size=1, max_size=4), st.integers(1, 15))
def test_bm25_ranks_like_rank_bm25(documents, queries, k):
    if not any(documents):
        documents = [*documents, "a"]  # rank_bm25 divides by zero without a single word
    ids, scores = BM25Index(documents).search(queries, k)
    filled = min(k, len(documents))
    for row, query in enumerate(queries):
        expected, order = reference_order(documents, query)
        assert ids[row].tolist() == order[:filled] + [-1] * (k - filled)
        np.testing.assert_allclose(scores[row, :filled], expected[order[:filled]], atol=1e-5)
        assert np.all(scores[row, filled:] == -np.inf)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=6), st.text(max_size=40))
def test_bm25_takes_any_text(documents, query):
    documents = [*documents, "one"]
    ids, scores = BM25Index(documents).search([query, documents[0]], 9)
    for row, text in enumerate([query, documents[0]]):
        expected, order = reference_order(documents, text)
        assert ids[row, : len(order)].tolist() == order
        np.testing.assert_allclose(scores[row, : len(order)], expected[order], atol=1e-5)


def test_bm25_ranks_like_rank_bm25_on_a_larger_corpus():
    documents = zipf_corpus(500)
    queries = zipf_corpus(5, seed=1) + [documents[7], "w0", "w399 unknown"]
    ids, scores = BM25Index(documents).search(queries, 20)
    for row, query in enumerate(queries):
        expected, order = reference_order(documents, query)
        assert ids[row].tolist() == order[:20]
        np.testing.assert_allclose(scores[row], expected[order[:20]], atol=1e-5)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_best_is_the_head_of_a_stable_sort(size, k, levels, seed):
    scores = np.random.default_rng(seed).integers(-levels, levels, size).astype(float)  # many ties
    best = bm25._best(scores, k)
    assert best.tolist() == np.argsort(-scores, kind="stable")[:k].tolist()


@pytest.mark.parametrize("documents", [["a b"], ["a b", "a c"]])
def test_bm25_of_one_or_two_documents_is_never_positive(documents):
    _, scores = BM25Index(documents).search(["a", "b", "a b c"], 2)
    assert np.all(scores[:, : len(documents)] <= 0)
    assert scores[0, len(documents) - 1] < 0


def test_bm25_batch_equals_one_by_one(monkeypatch):
    queries = ["pear", "", "plum date", "unknown", "fig fig apple"]
    together = BM25Index(FRUIT).search(queries, 3)
    monkeypatch.setattr(bm25, "_BLOCK_CELLS", 2 * len(FRUIT))  # blocks of two queries
    blocks = BM25Index(FRUIT).search(queries, 3)
    single = [BM25Index(FRUIT).search([query], 3) for query in queries]
    for axis in (0, 1):
        np.testing.assert_array_equal(blocks[axis], together[axis])
        np.testing.assert_array_equal(np.concatenate([s[axis] for s in single]), together[axis])


# ---------------------------------------------------------------------------------------- edges


@pytest.fixture(params=RETRIEVERS)
def retriever(request):
    return request.param


def test_no_documents(retriever):
    ids, scores = make_index([], retriever).search(["a", ""], 3)
    assert ids.dtype == np.int32 and scores.dtype == np.float32
    assert ids.tolist() == [[-1] * 3] * 2
    assert np.all(scores == -np.inf)


def test_documents_without_words(retriever):
    ids, scores = make_index(["", "...", "!"], retriever).search(["a", ""], 4)
    assert ids.tolist() == [[0, 1, 2, -1]] * 2
    assert scores[:, :3].tolist() == [[0, 0, 0]] * 2


def test_empty_and_unknown_queries_keep_document_order(retriever):
    ids, scores = make_index(FRUIT, retriever).search(["", "nothing known"], 3)
    assert ids.tolist() == [[0, 1, 2]] * 2
    assert not scores.any()


def test_more_places_than_documents(retriever):
    ids, scores = make_index(FRUIT, retriever).search(["fig"], 8)
    assert ids[0, :2].tolist() == [2, 3]
    assert sorted(ids[0, :5]) == [0, 1, 2, 3, 4]
    assert ids[0, 5:].tolist() == [-1] * 3
    assert np.all(scores[0, 5:] == -np.inf) and np.all(np.isfinite(scores[0, :5]))


def test_no_queries(retriever):
    ids, scores = make_index(FRUIT, retriever).search([], 3)
    assert ids.shape == scores.shape == (0, 3)


def test_equal_documents_keep_their_order(retriever):
    ids, _ = make_index(["x", "fig", "y", "fig", "z", "fig", "v"], retriever).search(["fig"], 2)
    assert ids.tolist() == [[1, 3]]


def test_errors_say_what_is_wrong(retriever):
    with pytest.raises(ValueError, match=r"documents\[1\] is NoneType"):
        make_index(["a", None], retriever)
    with pytest.raises(ValueError, match="documents is one string"):
        make_index("a b c", retriever)
    with pytest.raises(ValueError, match="queries is one string"):
        make_index(FRUIT, retriever).search("fig", 2)
    with pytest.raises(ValueError, match="k is 0"):
        make_index([], retriever).search(["fig"], 0)


def test_make_index_names_the_known_retrievers():
    assert isinstance(make_index(FRUIT), BM25Index)
    assert isinstance(make_index(FRUIT, "scann", dimensions=8), ScannIndex)
    with pytest.raises(ValueError, match="'tfidf'.*bm25, scann"):
        make_index(FRUIT, "tfidf")
    with pytest.raises(ValueError, match="dimensions is 0"):
        make_index(FRUIT, "scann", dimensions=0)


# ---------------------------------------------------------------------------------------- ScaNN


@settings(max_examples=100, deadline=None)
@given(CORPORA, st.lists(TEXTS, min_size=1, max_size=4), st.integers(1, 15))
def test_scann_reduces_to_bm25_while_every_term_has_a_column(documents, queries, k):
    exact = BM25Index(documents)
    _, best = exact.search(queries, k)
    ids, scores = ScannIndex(documents, dimensions=7).search(queries, k)
    np.testing.assert_allclose(scores, best, atol=1e-5)  # -inf only where BM25 has it
    for row, full in enumerate(exact.scores(queries)):
        filled = ids[row][ids[row] >= 0]
        assert len(set(filled.tolist())) == len(filled) == min(k, len(documents))
        np.testing.assert_allclose(full[filled], best[row, : len(filled)], atol=1e-5)


def test_scann_finds_most_of_bm25s_best_with_hashed_terms():
    documents, queries = zipf_corpus(300), zipf_corpus(40, seed=1)
    exact, _ = BM25Index(documents).search(queries, 10)
    shares = []
    for dimensions in (16, 64, 256):
        ids, _ = ScannIndex(documents, dimensions).search(queries, 10)
        rows = zip(ids.tolist(), exact.tolist(), strict=True)
        shares.append(np.mean([len(set(a) & set(b)) / 10 for a, b in rows]))
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.8  # of 400 terms, 128 have a column of their own
    first, _ = ScannIndex(documents, 256).search(documents[:50], 1)
    assert first[:, 0].tolist() == list(range(50))


def test_sketch_gives_every_term_a_vector_of_length_one():
    postings = count_postings(zipf_corpus(60))
    for dimensions in (1, 2, 3, 9, 64, 101):
        columns, factors, width = sketch_columns(postings, dimensions)
        assert width <= dimensions
        table = np.zeros((len(columns), width))
        np.add.at(table, (np.arange(len(columns))[:, None], columns), factors)
        np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, rtol=1e-6)


def test_sketch_keeps_the_common_terms_apart():
    postings = count_postings(zipf_corpus(60))
    columns, _, _ = sketch_columns(postings, 64)
    alone = np.all(columns < 32, axis=1)
    assert len(set(columns[alone, 0].tolist())) == alone.sum() == 32
    assert np.all(columns[~alone] >= 32)
    assert postings.frequency[alone].min() >= postings.frequency[~alone].max()


def test_sketch_dot_products_are_right_in_the_mean():
    # Renaming the terms draws new columns and signs: the mean error over the draws goes to 0.
    rng = np.random.default_rng(0)
    errors = []
    for name in range(400):
        postings = count_postings([" ".join(f"{name}_{t}" for t in range(30))])
        columns, factors, width = sketch_columns(postings, 16)
        table = np.zeros((30, width))
        np.add.at(table, (np.arange(30)[:, None], columns), factors)
        x, y = rng.normal(size=(2, 30))
        errors.append((x @ table) @ (y @ table) - x @ y)
    assert abs(np.mean(errors)) < 4 * np.std(errors) / math.sqrt(len(errors))
    assert np.std(errors) > 1  # it is an estimate


def test_sketch_is_the_same_in_every_process():
    # Written down once: a term's place depends on its text, not on a process's hash seed.
    postings = count_postings([" ".join(f"t{i}" for i in range(40))])
    columns, factors, width = sketch_columns(postings, 32)
    assert width == 32
    assert columns[-2:].tolist() == [[17, 22, 26, 31], [16, 20, 24, 31]]
    assert factors[-2:].tolist() == [[-0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, 0.5]]


def test_scann_asymmetric_hashing_agrees_with_brute_force():
    documents, queries = zipf_corpus(1500), zipf_corpus(20, seed=1)
    exact, scores = ScannIndex(documents, 64).search(queries, 10)
    ids, hashed_scores = ScannIndex(documents, 64, brute_force_below=1500).search(queries, 10)
    rows = zip(ids.tolist(), exact.tolist(), strict=True)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in rows]) > 0.9
    np.testing.assert_allclose(hashed_scores[:, 0], scores[:, 0], rtol=1e-5)  # reordered exactly


@pytest.mark.parametrize("count", [1, 2, 5])
def test_scann_asymmetric_hashing_of_few_documents(count):
    ids, scores = ScannIndex(FRUIT[:count], 64, brute_force_below=0).search(["pear fig"], 7)
    _, best = BM25Index(FRUIT[:count]).search(["pear fig"], 7)
    assert sorted(ids[0, :count].tolist()) == list(range(count))
    assert ids[0, count:].tolist() == [-1] * (7 - count)
    np.testing.assert_allclose(scores, best, atol=1e-5)


def test_scann_failures_are_not_hidden(monkeypatch):
    from scann.scann_ops.py import scann_ops_pybind

    def broken(*_args):
        raise RuntimeError("no searcher")

    monkeypatch.setattr(scann_ops_pybind, "builder", broken)
    with pytest.raises(RuntimeError, match="no searcher"):
        ScannIndex(FRUIT)
