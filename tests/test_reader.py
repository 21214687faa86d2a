"""The offline reader: what it quotes, votes for, is shown, and never sees."""

import inspect
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memalpha import passages, reader, reader_rules
from memalpha.data import synthetic
from memalpha.memory import Entry, MemoryView
from memalpha.reader import Answer, Evidence, gather, read
from memalpha.reader_rules import extractive_answers, extractive_reader
from memalpha.retrieval import make_index
from memalpha.scoring import score


def entries(*texts: str) -> tuple[Entry, ...]:
    """Entries written one a chunk, ids from 1."""
    return tuple(Entry(i + 1, text, i) for i, text in enumerate(texts))


def quote(question: str, *texts: str, core: str = "", max_words: int = 16) -> str:
    evidence = Evidence(core=core, semantic=entries(*texts))
    return extractive_reader(question, "squad", evidence, max_words=max_words)


def label(sentence: str, *texts: str, core: str = "") -> str:
    question = f"{sentence}\nWhat are the labels for the above sentence?"
    return extractive_reader(question, "nlu", Evidence(core=core, semantic=entries(*texts)))


def count_words(text: str) -> int:
    return len(text.split())


def make_indexes(view: MemoryView):
    return tuple(make_index([e.text for e in which]) for which in (view.semantic, view.episodic))


def answer(instance, view: MemoryView) -> list[Answer]:
    questions = [question.question for question in instance.questions]
    indexes = make_indexes(view)
    requests = gather(questions, instance.source, view, indexes, count_tokens=count_words)
    return read(requests, extractive_answers)


def make_view(core: str, semantic: tuple[Entry, ...], episodic: tuple[Entry, ...] = ()):
    return MemoryView(core, semantic, episodic, len(semantic), len(episodic), 0)


# ---------------------------------------------------------------------------- quoting


def test_one_hop_quotes_the_fact_and_no_lookalike():
    texts = (
        "The pet of Mira Voss is a parrot.",
        "The pet of Mira Falk is a ferret.",
        "The pet of Anna Voss is a canary.",
        "The hobby of Mira Voss is chess.",
    )
    assert quote("What is the pet of Mira Voss?", *texts) == texts[0]
    assert quote("What is the hobby of Mira Voss?", *texts) == texts[3]


def test_one_sentence_of_a_long_entry_or_core_is_quoted():
    core = "Mira Voss keeps a parrot. Dr. Otto Falk plays the harp; Anna Graf\nworks as a nurse"
    assert quote("Which instrument does Otto Falk play?", core=core) == (
        "Dr. Otto Falk plays the harp;"
    )
    assert quote("Where does Mira Voss keep her parrots?", core) == "Mira Voss keeps a parrot."


def test_events_answer_with_their_date():
    texts = (
        "2024/01/07: My brother cleaned the red chair.",
        "2024/01/08: My sister cleaned the red chair.",
        "2024/01/09: My brother painted the red chair.",
        "2024-01-10: Mira bought a blue kayak.",
    )
    ask = "On which date did my {} the red chair?"
    assert quote(ask.format("brother clean"), *texts) == texts[0]
    assert quote(ask.format("sister clean"), *texts) == texts[1]
    assert quote(ask.format("brother paint"), *texts) == texts[2]
    # A date is one term, in either notation; irregular verbs agree with their base form.
    assert quote("What happened on 2024-01-08?", *texts) == texts[1]
    assert quote("When did Mira buy a kayak?", *texts) == texts[3]


def test_two_hops_follow_the_name_to_the_uncovered_terms():
    texts = (
        "Alpina Foods is based in Oslo.",
        "The employer of Mira Voss is Norvik Press.",
        "The employer of Mira Falk is Alpina Foods.",
        "Norvik Press is based in Lund.",
        "Norvik Press prints maps.",
    )
    answer = quote("In which town is the employer of Mira Voss based?", *texts)
    assert answer == f"{texts[1]} {texts[3]}"
    # Also in lower case, where no capital marks the name.
    answer = quote("in which town is the employer of mira voss based?", *map(str.lower, texts))
    assert answer == f"{texts[1]} {texts[3]}".lower()


def test_two_hops_answer_nothing_when_the_link_is_missing():
    texts = ("Alpina Foods is based in Oslo.", "The employer of Mira Voss is Norvik Press.")
    assert "Oslo" not in quote("In which town is the employer of Mira Voss based?", *texts)


def test_no_second_passage_when_the_first_covers_the_question():
    texts = ("The pet of Mira Voss is a Ferret.", "A Ferret is a small animal.")
    assert quote("What is the pet of Mira Voss?", *texts) == texts[0]


def test_the_newest_of_equal_facts_wins():
    texts = (
        "The pet of Mira Voss is a parrot.",
        "By now the pet of Mira Voss is a ferret.",
        "The pet of Otto Falk is a canary.",
    )
    assert quote("What is the pet of Mira Voss now?", *texts) == texts[1]
    # `written_at` decides, not the id: an updated entry keeps its id.
    updated = (Entry(1, texts[0], 5), Entry(2, "Mira Voss has a ferret as a pet.", 3))
    evidence = Evidence(semantic=updated)
    assert quote("What is the pet of Mira Voss?", core=texts[1]) == texts[1]
    assert extractive_reader("What is the pet of Mira Voss?", "squad", evidence) == texts[0]


def test_an_entry_wins_a_tie_with_the_core():
    core = "The pet of Mira Voss is a parrot."
    new = "The pet of Mira Voss is a ferret."
    assert quote("What is the pet of Mira Voss?", new, core=core) == new


def test_an_absent_fact_costs_no_more_than_the_budget():
    texts = tuple(f"The pet of Mira Voss and of person {i} is animal {i}." for i in range(30))
    answer = quote("What is the trade of Mira Voss?", *texts, core=" ".join(texts))
    assert 0 < len(answer.split()) <= 16
    assert quote("What is the trade of Otto Falk?", "Snow fell.") == ""
    assert quote("What is the trade of Otto Falk?") == ""


def test_a_dump_without_sentences_is_cut_around_the_match():
    dump = " ".join(f"person{i} owns animal{i}" for i in range(50))
    answer = quote("What does person20 own?", dump, max_words=7)
    # Of the runs that hold both matches (words 60 and 61) the middle one.
    assert answer == "owns animal19 person20 owns animal20 person21 owns"


def test_a_quote_about_something_else_is_not_given():
    """Two of five terms are no reason to name a date: half of them have to be there."""
    asked = "On which date did my brother borrow the green tent?"
    other = "2024/01/07: My brother cleaned the green fence."
    assert quote(asked, other) == ""
    assert quote(asked, other, "2024/01/08: My brother borrowed the green tent.").startswith(
        "2024/01/08"
    )


def test_both_passages_share_one_budget():
    texts = (
        "The employer of Mira Voss, as all her friends know well, is Norvik Press.",  # 14 words
        "Norvik Press is, as every map of the country shows, based in Lund.",
    )
    answer = quote("Where is the employer of Mira Voss based?", *texts)
    assert len(answer.split()) == 16 and answer.startswith(texts[0])


# ---------------------------------------------------------------------------- scripts


@pytest.mark.parametrize(
    ("question", "texts", "answer"),
    [
        (
            "小明的猫叫什么名字？",
            ("小红的猫叫咪咪。", "小明的狗叫旺财。", "小明住在北京。小明的猫叫雪球。"),
            "小明的猫叫雪球。",
        ),
        ("小明去了哪里？", ("他说：“好。”然后小明去了上海！", "小红在家。"), "然后小明去了上海！"),
        ("小刚的生日是哪天？", ("小红的猫叫咪咪。", "小明住在北京。"), ""),
        (
            "田中さんの猫の名前は何ですか？",
            ("鈴木さんの猫の名前はクロです。", "田中さんの猫の名前はタマです。"),
            "田中さんの猫の名前はタマです。",
        ),
        (
            "สุนัขของมานะชื่ออะไร",
            ("แมวของปิติชื่อสีดา", "สุนัขของมานะชื่อโบโบ้", "เมื่อวานฝนตก"),
            "สุนัขของมานะชื่อโบโบ้",
        ),
        (
            "राम की बिल्ली का नाम क्या है?",
            ("श्याम की गाय का नाम गौरी है। राम की बिल्ली का नाम मीठी है।",),
            "राम की बिल्ली का नाम मीठी है।",
        ),
        (
            "Where is the CAFÉ?",
            ("It rained.", "The cafe\u0301 is in Lund."),
            "The cafe\u0301 is in Lund.",
        ),
    ],
)
def test_questions_are_answered_in_every_script(question, texts, answer):
    assert quote(question, *texts) == answer


def test_the_newest_of_equal_facts_wins_in_chinese():
    assert quote("小明住在哪里？", "小明住在北京。", "小明住在上海。") == "小明住在上海。"


def test_a_dump_without_spaces_is_cut_around_the_match():
    dump = "，".join(
        f"第{number}个人叫{name}" for number, name in enumerate("甲乙丙丁戊己庚辛", 10)
    )
    answer = quote("第13个人叫什么？", dump, max_words=7)
    assert "13个人叫丁" in answer and len(answer) <= 21
    core = "小明去北京。" * 9
    assert (
        extractive_reader("?", "booksum", Evidence(core=core), max_summary_words=3)
        == "小明去北京。"
    )


def test_labels_are_voted_for_in_chinese():
    assert label("请帮我订一张机票", "订机票 -> 3", "播放音乐 -> 8") == "\\boxed{3}"
    assert label("播放一首音乐", "订机票：3", "播放音乐：8") == "\\boxed{8}"


# ---------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    "example",
    [
        "Sentence: {} Label: 17",
        "Sentence: {}\nLabel: 17",
        "Sample: {}\n\nLabels: 17",
        "{} -> 17",
        "{} => 17",
        "{} = 17",
        "{}: 17",
        "{} (label 17)",
        "{} [label: 17]",
        "{}, label 17.",
        "{} 17",
        "- {} → 17",
        "label 17: {}",
        "17 = {}",
        "17: {}",
        "17 means {}",
    ],
)
def test_forms_of_labelled_examples(example):
    (parsed,) = passages.label_examples(example.format("book the flight"))
    assert (parsed.text, parsed.label) == ("book the flight", 17)


@pytest.mark.parametrize("text", ["", "book the flight", "2024-01-07: Mira flew.", "at 7:30", "17"])
def test_what_is_no_labelled_example(text):
    assert passages.label_examples(text) == ()


def test_several_examples_in_one_text():
    def pairs(text):
        return [(example.text, example.label) for example in passages.label_examples(text)]

    assert pairs("Sentence: a b\nLabel: 1\n\nSentence: c d\nLabel: 2") == [("a b", 1), ("c d", 2)]
    rules = "Labels: 0 = play music, 1 = set alarm; label 2: send mail"
    assert pairs(rules) == [("play music", 0), ("set alarm", 1), ("send mail", 2)]
    assert pairs("play it -> 0\nwake me at 7:30 -> 1") == [("play it", 0), ("wake me at 7:30", 1)]


def test_the_most_similar_examples_vote():
    examples = (
        "please book the flight today -> 3",
        "cancel the hotel now -> 3",
        "play the song today -> 8",
        "shuffle the album now -> 8",
        "heat the hallway -> 5",
    )
    assert label("could you book the hotel today", *examples) == "\\boxed{3}"
    assert label("shuffle the songs", *examples) == "\\boxed{8}"
    assert label("What is the hallway?", *examples) == "\\boxed{5}"


def test_several_neighbours_outvote_one_as_similar():
    # All four share "red" and nothing else; label 1 has the newest, label 2 the most.
    texts = ("red b -> 2", "red c -> 2", "red d -> 2", "red a -> 1")
    assert label("red", *texts) == "\\boxed{2}"
    assert label("red a", *texts) == "\\boxed{1}"


def test_rules_in_core_serve_as_examples():
    core = "label 3: booking travel. label 8: playing music"
    assert label("play the song", core=core) == "\\boxed{8}"
    assert label("book the flight", core=core) == "\\boxed{3}"


def test_the_newest_of_contradicting_examples_wins():
    assert label("dim the cellar", "dim the cellar -> 4", "dim the cellar -> 6") == "\\boxed{6}"


def test_no_label_without_a_similar_example():
    assert label("dim the cellar") == ""
    assert label("dim the cellar", "The weather was mild.") == ""
    assert label("dim the cellar", "book a flight -> 3") == ""


def test_the_question_after_the_sentence_is_not_compared():
    question = "Sentence: dim it\nWhat are the labels for the above sentence?"
    assert passages.strip_label_question(question) == "dim it"
    assert label("dim it", "what are the labels for the above sentence -> 1", "dim -> 2") == (
        "\\boxed{2}"
    )


# ---------------------------------------------------------------------------- summaries


def test_a_summary_is_the_core_alone():
    evidence = Evidence(core=" Mira left. \n Otto stayed. ", semantic=entries("A lamp fell."))
    assert extractive_reader("Sum up.", "booksum", evidence) == "Mira left. \n Otto stayed."
    cut = extractive_reader("Sum up.", "booksum", evidence, max_summary_words=3)
    assert cut == "Mira left. Otto"
    assert extractive_reader("Sum up.", "booksum", Evidence()) == ""


# ---------------------------------------------------------------------------- evidence


def test_gather_finds_the_top_k_of_each_list_and_the_core():
    facts = entries(*(f"The pet of person{i} is animal{i}." for i in range(50)))
    events = tuple(Entry(100 + i, f"2024-01-{i + 1:02d}: person{i} left.", i) for i in range(9))
    view = make_view("A core of five words.", facts, events)
    (request,) = gather(
        ["What is the pet of person30?"],
        "squad",
        view,
        make_indexes(view),
        top_k=20,
        count_tokens=count_words,
    )
    evidence = request.evidence
    assert evidence.core == view.core
    assert len(evidence.semantic) == 20 and len(evidence.episodic) == 9  # all there are
    assert evidence.semantic[0].id == 31
    assert list(evidence.semantic_scores) == sorted(evidence.semantic_scores, reverse=True)
    assert evidence.tokens == 5 + 20 * 6 + 9 * 3
    (answer,) = read([request], extractive_answers)
    assert answer.text == facts[30].text
    assert answer.ids == tuple(e.id for e in evidence.entries)
    assert len(answer.ids) == len(answer.scores) == 29 and answer.tokens == evidence.tokens


@pytest.mark.parametrize(
    ("budget", "k", "tokens"),
    [(1000, 4, 5 + 12 + 12), (28, 3, 5 + 9 + 9), (11, 1, 11), (10, 0, 5), (1, 0, 5)],
)
def test_top_k_shrinks_until_the_evidence_fits(budget, k, tokens):
    facts = entries(*(f"fact number {i}" for i in range(4)))
    events = tuple(Entry(10 + i, f"event number {i}", i) for i in range(4))
    view = make_view("one two three four five", facts, events)
    sizes = {"top_k": 4, "budget_tokens": budget, "count_tokens": count_words}
    (request,) = gather(["number 2?"], "squad", view, make_indexes(view), **sizes)
    evidence = request.evidence
    assert len(evidence.semantic) == len(evidence.episodic) == k
    assert len(evidence.semantic_scores) == len(evidence.episodic_scores) == k
    assert evidence.tokens == tokens


def test_tokens_are_counted_as_the_caller_does():
    view = make_view("abc", entries("defg"))
    index = make_index(["defg"])
    (request,) = gather(["defg"], "squad", view, (index, None), count_tokens=len)
    assert request.evidence.tokens == 3 + 4


def test_an_empty_memory_gives_empty_answers():
    view, indexes = make_view("", ()), (None, make_index([]))
    requests = gather(["Who?", "What?"], "squad", view, indexes, count_tokens=len)
    assert read(requests, extractive_answers) == [Answer("", (), (), 0)] * 2
    assert gather([], "squad", view, indexes, count_tokens=len) == []


def test_what_cannot_be_read_is_refused():
    whole = make_view("", entries("a fact"))
    part = MemoryView("", entries("a fact"), (), 7, 0, 0)
    index = make_index(["a fact"])
    with pytest.raises(ValueError, match="1 of 7 semantic"):
        gather(["?"], "squad", part, (index, None), count_tokens=len)
    with pytest.raises(ValueError, match="no index"):
        gather(["?"], "squad", whole, (None, None), count_tokens=len)
    with pytest.raises(ValueError, match="top_k"):
        gather(["?"], "squad", whole, (index, None), 0, count_tokens=len)
    with pytest.raises(ValueError, match="1 questions but 0 replies"):
        read(gather(["?"], "squad", whole, (index, None), count_tokens=len), lambda requests: [])


def test_a_failed_answerer_is_kept_apart_from_an_empty_answer():
    view = make_view("", ())
    requests = gather(["a", "b"], "squad", view, (None, None), count_tokens=len)
    answers = read(requests, answerer=lambda requests: [None, ""])
    assert [answer.text for answer in answers] == [None, ""]


def test_gold_answers_have_no_way_in():
    """No field of a request and no parameter on the way could carry one."""
    names = {f.name for f in fields(reader.Request)} | {f.name for f in fields(Evidence)}
    for function in (gather, read, extractive_reader, reader_rules.quote, reader_rules.vote_label):
        names |= set(inspect.signature(function).parameters)
    assert not {name for name in names if "gold" in name or name in ("answer", "answers")}


# ---------------------------------------------------------------------------- properties

# Lone surrogates and unassigned code points too, and texts of a few letters of several scripts.
ANY_TEXT = st.text(st.characters()) | st.text("ab é\u0301กิ猫的あ한दि 1-2.。？；\ud83d\ufe0f\u0378")
FACTS = entries(
    "The pet of Mira Voss is a parrot.",
    "The pet of Mira Falk is a ferret.",
    "The employer of Mira Voss is Norvik Press.",
    "The head office of Norvik Press is in Lund.",
    "The head office of Alpina Foods is in Oslo.",
    "By now the pet of Mira Voss is a canary.",
)


@given(st.permutations(FACTS))
def test_the_order_of_the_entries_does_not_matter(shuffled):
    evidence = Evidence(semantic=tuple(shuffled[:3]), episodic=tuple(shuffled[3:]))
    hops = "In which town is the head office of the employer of Mira Voss?"
    assert reader_rules.quote("What is the pet of Mira Voss?", evidence) == FACTS[5].text
    cut = FACTS[3].text.removeprefix("The ")  # both passages have 17 words
    assert reader_rules.quote(hops, evidence) == f"{FACTS[2].text} {cut}"


@given(st.permutations(entries("a b -> 1", "a c -> 2", "a d -> 3", "a e -> 3", "b c -> 4")))
def test_the_order_of_the_examples_does_not_matter(shuffled):
    # Label 3 has two examples that match as well as any other single one.
    assert reader_rules.vote_label("a", Evidence(semantic=tuple(shuffled))) == 3


@settings(deadline=None)
@given(
    ANY_TEXT,
    st.sampled_from(["squad", "nlu", "booksum"]),
    ANY_TEXT,
    st.lists(ANY_TEXT, max_size=4),
    st.integers(1, 20),
)
def test_any_text_gets_an_answer_within_the_budget(question, source, core, texts, max_words):
    evidence = Evidence(core=core, semantic=entries(*texts))
    answer = extractive_reader(question, source, evidence, max_words, max_summary_words=max_words)
    assert isinstance(answer, str)
    assert len(answer.split()) <= max_words


@settings(deadline=None)
@given(st.text(alphabet="ab12 :=->→()[].,;\nlabelsentence", max_size=80))
def test_any_text_parses_as_examples(text):
    for example in passages.label_examples(text):
        assert example.text and example.label >= 0


@pytest.mark.parametrize("family", sorted(synthetic.GENERATORS))
def test_a_perfect_memory_answers_the_synthetic_sources_and_an_empty_one_does_not(family):
    right, blank, asked = 0.0, 0.0, 0
    for index in range(4):
        instance = synthetic.generate(family, "train", index, chunks=5)
        core, lists, next_id = [], {"semantic": [], "episodic": []}, 1
        for chunk, notes in enumerate(instance.metadata["notes"]):
            for note in notes:
                if note["memory"] == "core":
                    core.append(note["content"])
                    continue
                lists[note["memory"]].append(Entry(next_id, note["content"], chunk))
                next_id += 1
        view = make_view(" ".join(core), tuple(lists["semantic"]), tuple(lists["episodic"]))
        answers = answer(instance, view)
        nothing = answer(instance, make_view("", ()))
        for question, full, empty in zip(instance.questions, answers, nothing, strict=True):
            right += score(instance.source, full.text, question.answers)
            blank += score(instance.source, empty.text, question.answers)
            asked += 1
    assert blank == 0
    # Labels have few examples a class and three classes; everything else can be looked up.
    assert right / asked >= (0.6 if family == "labels" else 0.95)


@pytest.mark.parametrize(
    "words",
    [
        "move moves moved moving",
        "city cities",
        "study studies studied studying",
        "stop stops stopped stopping",
        "add adds added adding",
        "buy buys buying bought",
        "movie movies",
        "die dies died",
        "box boxes",
        "class classes",
        "play plays played playing",
    ],
)
def test_forms_of_a_word_share_a_stem(words):
    assert len({passages.stem(word) for word in words.split()}) == 1


def test_different_words_keep_different_stems():
    words = "pet petra press bus basel paint pain red reed lund ring".split()
    assert len({passages.stem(word) for word in words}) == len(words)


def test_rare_terms_weigh_more_and_absent_ones_nothing():
    weights = passages.idf({"a", "b", "c"}, [{"a", "b"}, {"a"}, {"a"}])
    assert weights == pytest.approx({"a": 0.6931472, "b": 1.3862944})  # log 2, log 4
