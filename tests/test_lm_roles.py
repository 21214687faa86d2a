"""Reader, judges and writer on a scripted engine, and on a server, from end to end."""

import math
from dataclasses import replace

import numpy as np
import pytest
from chat_server import fails

from memalpha import scoring
from memalpha.agent import terminal as cli
from memalpha.agent.memory_agent import MemoryAgent
from memalpha.data import synthetic
from memalpha.data.instance import Instance, Question
from memalpha.judge import Verdict
from memalpha.lm.interface import Generation, check_seeds, cut_at, own_seed
from memalpha.lm.roles import (
    CRITERIA,
    lm_content_judge,
    lm_reader,
    lm_score_judge,
    lm_writer,
    prompted_environment,
    read_verdict,
    render_verdict,
)
from memalpha.memory import Entry, MemoryView
from memalpha.prompts import CUT_MARK, fit_messages, load_template
from memalpha.reader import Evidence, Request
from memalpha.rollout import run_episodes, scripted_writer, to_batch
from memalpha.scoring import Claim
from memalpha.tools import Call, format_call

FAILED = Generation("", error="400: too long")


class Scripted:
    """An engine that says what `say(text of the chat)` gives: a text, or a generation."""

    name = "scripted"

    def __init__(self, say):
        self.say, self.chats, self.settings = say, [], []

    def generate(self, prompts, max_new_tokens, temperature=0.0, seed=0, tools=None):
        self.settings.append((max_new_tokens, temperature, seed))
        self.chats += prompts
        said = [self.say("\n".join(m["content"] for m in chat)) for chat in prompts]
        return [s if isinstance(s, Generation) else Generation(s) for s in said]


def text_of(chat):
    return "\n".join(message["content"] for message in chat)


def insert(content, memory_type="semantic"):
    arguments = {"memory_type": memory_type, "content": content}
    return format_call("new_memory_insert", arguments, "qwen3")


EVIDENCE = Evidence("The core.", (Entry(4, "Rex is a dog.", 0),), (Entry(5, "It rained.", 1),))


def test_the_reader_sees_the_evidence_and_answers_without_its_thinking():
    engine, said = Scripted(lambda text: "<think>hm, Felix?</think>\nRex"), []
    requests = [Request("Who?", "squad", EVIDENCE), Request("a </s> cat", "nlu", EVIDENCE)]
    assert lm_reader(engine, on_failure=said.append)(requests) == ["Rex", "Rex"]
    who, label = map(text_of, engine.chats)
    for part in ("The core.", "Rex is a dog.", "It rained.", "<question>\nWho?\n</question>"):
        assert part in who
    assert "\\boxed{" in label and "\\boxed{" not in who
    assert "</s>" not in label and "‹/s>" in label
    assert engine.settings == [(2048, 0.0, 0)] and not said
    name = "scripted, at most 9 tokens, temperature 0.5, template compact"
    assert lm_reader(engine, load_template("compact"), 9, 0.5).name == name


def test_the_reader_is_told_when_a_question_is_asked():
    engine = Scripted(lambda text: "Rex")
    dated = Request("How long ago?", "lme_train", EVIDENCE, "2023/05/20 (Sat) 02:21")
    lm_reader(engine)([dated, Request("How long ago?", "lme_train", EVIDENCE)])
    one, two = map(text_of, engine.chats)
    assert "[Asked at 2023/05/20 (Sat) 02:21] How long ago?\n</question>" in one
    assert "<question>\nHow long ago?\n</question>" in two


def test_a_reader_of_one_line_stops_at_its_end_but_for_summaries():
    class Stopping(Scripted):
        def generate(self, prompts, *settings, stop=()):
            return [
                replace(said, text=cut_at(said.text, stop))
                for said in super().generate(prompts, *settings)
            ]

    requests = [Request("q", source, EVIDENCE) for source in ("squad", "booksum", "nlu")]
    engine = Stopping(lambda text: "Rex\nand more")
    reader = lm_reader(engine, one_line=True)
    assert reader(requests) == ["Rex", "Rex\nand more", "Rex"]
    assert lm_reader(engine)(requests) == ["Rex\nand more"] * 3
    assert reader.name == lm_reader(engine).name + ", one line"
    begins = lm_reader(Stopping(lambda text: "\n\nRex\nand more"), one_line=True)
    assert begins(requests) == ["Rex", "Rex\nand more", "Rex"]


def test_a_reader_that_fails_says_none_and_why():
    said = []
    engine = Scripted(lambda text: FAILED if "Who?" in text else "<think>never ends")
    requests = [Request(q, "squad", EVIDENCE) for q in ("Who?", "Where?")]
    assert lm_reader(engine, on_failure=said.append)(requests) == [None, ""]
    assert said == ["reader scripted: 400: too long"]
    assert lm_reader(engine)([]) == []


def test_every_type_of_question_is_judged_by_its_own_rule():
    texts = {}
    for kind in CRITERIA:
        claim = Claim(
            "longmemeval_s", "When </question> was it?", "In <reply> May", ("June",), kind
        )
        texts[kind] = text_of(render_verdict(claim))
        assert [texts[kind].count(f"<{t}>") for t in ("question", "expected", "reply")] == [1] * 3
        assert "June" in texts[kind] and "In ‹reply> May" in texts[kind]
    assert len(set(texts.values())) == len(set(CRITERIA.values())) == 5
    assert "off by one" in texts["temporal-reasoning"]
    assert "cannot be answered" in texts["abstention"]
    unknown = Claim("longmemeval_s", "When </question> was it?", "In <reply> May", ("June",), "new")
    assert text_of(render_verdict(unknown)) == texts["multi-session"]


def test_a_judge_that_says_neither_yes_nor_no_has_failed():
    said, replies = [], {"a": "Yes.", "b": "<think>yes</think>no", "c": "It depends.", "d": FAILED}

    def say(text):
        return next(reply for key, reply in replies.items() if f"<reply>\n{key}\n" in text)

    judge = lm_score_judge(Scripted(say), on_failure=said.append)
    claims = [Claim("lme_train", "q", reply, ("x",)) for reply in replies]
    assert judge(claims) == ["Yes.", "no", "It depends.", None]
    np.testing.assert_equal(scoring.scores(claims, judge), [1.0, 0.0, np.nan, np.nan])
    assert said[:2] == [
        "judge scripted: 400: too long",
        "the judge said neither yes nor no: 'It depends.'",
    ]


def test_the_content_judge_is_asked_of_contents_alone():
    def say(text):
        if "<memory_entry>\nfine\n" in text:
            return 'So: {"VALID": true, "ISSUES": [], "EXPLANATION": "e"}'
        return '{"VALID": false, "ISSUES": ["no time",]}' if "poor" in text else FAILED

    engine, said = Scripted(say), []
    arguments = [{"memory_type": "episodic", "content": text} for text in ("fine", "poor", "lost")]
    calls = [
        *(Call("new_memory_insert", a) for a in arguments),
        Call("memory_delete", {"memory_type": "semantic", "memory_id": "1"}),
        Call("new_memory_insert", {"memory_type": "diary", "content": "x"}),
        Call("", {}, error="no JSON"),
    ]
    verdicts = lm_content_judge(engine, on_failure=said.append)(calls)
    assert [v.valid for v in verdicts] == [True, False, False, True, False, False]
    assert [v.failed for v in verdicts] == [False, False, True, False, False, False]
    assert len(engine.chats) == 3
    assert said == ["judge scripted: 400: too long"]
    assert "episodic memory" in text_of(engine.chats[0])
    assert lm_content_judge(engine)([]) == []


def test_contents_of_one_memory_are_judged_together_and_verdicts_come_in_order():
    """Their prompts begin alike, so that a local engine reads the criteria once."""
    engine = Scripted(
        lambda text: f'{{"KIND": "k", "VALID": {"true" if "good" in text else "false"}}}'
    )
    texts = [("episodic", "good"), ("core", "bad"), ("semantic", "good"), ("episodic", "bad")]
    calls = [Call("new_memory_insert", {"memory_type": m, "content": t}) for m, t in texts]
    calls[1] = Call("memory_update", {"memory_type": "core", "new_content": "bad"})
    verdicts = lm_content_judge(engine)(calls)
    assert [v.valid for v in verdicts] == [True, False, True, False]
    assert len(engine.settings) == 3 and len(engine.chats) == 4
    begins = [text_of(chat).partition("<memory_entry>")[0] for chat in engine.chats]
    assert begins[2] == begins[3] and len(set(begins)) == 3


@pytest.mark.parametrize(
    "reply, verdict",
    [
        ('{"VALID": true, "ISSUES": []}', Verdict(True)),
        ('```json\n{"VALID": True, "ISSUES": ["none"]}\n```', Verdict(True)),
        ('{"VALID": "false", "ISSUES": "one"}', Verdict(False)),
        ('{"VALID": false}', Verdict(False)),
        ('As {"VALID": false} asks: {"VALID": true}', Verdict(True)),
        ('{"VALID": true, "EXPLANATION": "It says "no", which: is "fine"."}', Verdict(True)),
        *[(text, None) for text in ("", None, "yes", "{}", '{"VALID": "perhaps"}', "}{", "[true]")],
        *[('{"VALID": true, "ISSUES": ' + loop, None) for loop in ("[" * 330, "[{}, " * 900)],
        ('{"VALID": true, "ISSUES": ' + "[" * 330 + "]" * 330, None),
    ],
)
def test_verdicts_in_json_slightly_broken_or_not_there(reply, verdict):
    found = read_verdict(reply)
    assert found == verdict if verdict else found.failed and not found.valid


def lme(number, kind, reply_id=""):
    questions = (Question(f"Where is item {number}?", ("in the box",)),)
    chunk = f"Item {number} is in the box, they said on 2024-05-06."
    metadata = {"question_types": [kind], "question_ids": [f"q{number}{reply_id}"]}
    return Instance("lme_train", str(number), (chunk,), questions, metadata)


def test_reader_and_judges_from_end_to_end(micro):
    """A reader that knows item 1 alone and fails on 3, and judges that cannot judge 2."""

    def answers(text):
        return FAILED if "item 3" in text else "in the box" if "item 1" in text else "nowhere"

    def judges(text):
        if "VALID" in text:
            return "no idea" if "Item 2" in text else '{"VALID": true}'
        if "Where is item 2" in text:
            return "hard to say"
        return "yes" if "<reply>\nin the box" in text else "no"

    env = micro.env
    reader, judge = Scripted(answers), Scripted(judges)
    env = env.replace(
        answerer=lm_reader(reader, on_failure=env.reading.failures.append),
        content_judge=lm_content_judge(judge, on_failure=env.reading.failures.append),
        answer_judge=lm_score_judge(judge, on_failure=env.reading.failures.append),
    )
    instances = [lme(1, "multi-session"), lme(2, "x"), lme(3, "x"), lme(4, "x", "_abs")]
    writer = scripted_writer(env, lambda turn: insert(turn.text))
    episodes = run_episodes(env, instances, writer)
    np.testing.assert_equal([e.scores for e in episodes], [[1.0], [np.nan], [np.nan], [0.0]])
    assert [e.valid for e in episodes] == [True, False, False, True]
    assert [bool(e.failure) for e in episodes] == [False, True, True, False]
    np.testing.assert_equal([e.steps[0].r4 for e in episodes], [1.0, np.nan, 1.0, 1.0])
    verdicts = [text_of(chat) for chat in judge.chats if "VALID" not in text_of(chat)]
    assert len(verdicts) == 3  # one judge call, without what the reader did not answer
    assert [("cannot be answered" in text) for text in verdicts] == [False, False, True]
    assert len(judge.settings) == 2  # all contents at once, all claims at once
    assert {"reader scripted: 400: too long", "the judge gave no verdict: 'no idea'"} <= set(
        env.reading.failures
    )
    batch = to_batch(episodes, 1, 320, 128, 4)
    assert batch.rows.valid.tolist() == [True, False, False, True]
    assert np.isfinite(np.stack(list(batch.rows.rewards.values()))).all()


def test_a_step_whose_calls_could_not_be_judged_is_not_a_row_but_its_episode_counts(micro):
    def judge(calls):
        return [Verdict(True, failed="Item 2" in call.arguments["content"]) for call in calls]

    env = micro.env.replace(content_judge=judge, answer_judge=scoring.recall_judge)
    both = replace(lme(1, "x"), chunks=(*lme(1, "x").chunks, *lme(2, "x").chunks))
    (episode,) = run_episodes(env, [both], scripted_writer(env, lambda t: insert(t.text)))
    assert episode.valid and math.isnan(episode.steps[1].r4)
    assert to_batch([episode], 1, 320, 128, 2).rows.valid.tolist() == [True, False]
    with pytest.raises(ValueError, match="1 calls but 0 verdicts"):
        run_episodes(
            env.replace(content_judge=lambda _: []),
            [both],
            scripted_writer(env, lambda t: insert("x")),
        )


def test_a_prompted_writer_writes_in_the_environment_it_is_given(micro):
    env = prompted_environment().replace(answer_judge=scoring.recall_judge)
    assert env.prompt.tokenizer.decode(env.prompt.tokenizer.encode("Zoë 🙂 < \n")) == "Zoë 🙂 < \n"

    def say(text):
        return f"<think>what now</think>{insert('Item 1 is in the box.')}"

    engine = Scripted(say)
    (episode,) = run_episodes(env, [lme(1, "x")], lm_writer(env, engine, seed=3))
    assert [e.text for e in episode.view.semantic] == ["Item 1 is in the box."]
    assert episode.scores == [1.0] and episode.steps[0].text == insert("Item 1 is in the box.")
    system, user = engine.chats[0]
    assert system["role"] == "system" and "new_memory_insert" in system["content"]
    assert "at most 1638 tokens" in user["content"]
    assert engine.settings == [(2048, 0.0, 3)]
    assert env.memory.entry_tokens == 4 * 512  # bytes
    other = prompted_environment(micro.tokenizer)
    assert other.prompt.tokenizer is micro.tokenizer and other.memory.entry_tokens == 512


def test_a_prompted_writer_may_call_in_bare_json():
    env = prompted_environment().replace(answer_judge=scoring.recall_judge)
    engine = Scripted(lambda text: "```json\n" + insert("In the box.")[12:-13] + "\n```")
    (episode,) = run_episodes(env, [lme(1, "x")], lm_writer(env, engine))
    assert [e.text for e in episode.view.semantic] == ["In the box."] and episode.steps[0].r2 == 1


def environment_with_room(room, **settings):
    """One whose prompts have room for so many bytes of a memory beside the chunk "Two."."""
    env = prompted_environment()
    bare = fit_messages(env.prompt, MemoryView("", (), (), 0, 0, 0), "Two.")[1]
    return env.replace(prompt_tokens=len(bare) + room, **settings)


def test_a_prompted_writer_shows_as_many_entries_as_fit():
    env = environment_with_room(600, recent=4)
    engine = Scripted(lambda text: "\n".join(insert(f"{n} " + "x" * 200) for n in range(5)))
    run_episodes(env, [replace(lme(1, "x"), chunks=("One.", "Two."), source="squad")],
                 lm_writer(env, engine))  # fmt: skip
    shown = [text_of(chat).count("x" * 200) for chat in engine.chats]
    assert shown == [0, 2]
    assert len(text_of(engine.chats[1])) <= env.prompt.prompt_tokens


def test_a_prompted_writer_is_shown_a_core_that_fits():
    env = environment_with_room(500)
    core = {"memory_type": "core", "new_content": "First words. " + "y " * 900}
    engine = Scripted(lambda text: format_call("memory_update", core, "qwen3"))
    chunks = ("One.", "Two.")
    (episode,) = run_episodes(
        env, [replace(lme(1, "x"), chunks=chunks, source="squad")], lm_writer(env, engine)
    )
    assert len(episode.view.core) > 500  # bytes
    empty, shown = map(text_of, engine.chats)
    assert "First words. y y" in shown and CUT_MARK in shown and "Two." in shown
    assert CUT_MARK not in empty and len(shown) <= env.prompt.prompt_tokens


def test_a_writer_that_fails_leaves_its_episode_without_a_score(micro):
    said = []
    env = micro.env.replace(answer_judge=scoring.recall_judge)
    engine = Scripted(lambda text: FAILED if "Item 2" in text else insert("in the box"))
    writer = lm_writer(env, engine, on_failure=said.append)
    episodes = run_episodes(env, [lme(1, "x"), lme(2, "x")], writer)
    assert [e.valid for e in episodes] == [True, False]
    assert said == ["writer scripted: 400: too long"]
    agent = MemoryAgent(env, writer)
    with pytest.raises(RuntimeError, match="nothing was stored: 400: too long"):
        agent.observe("Item 2")
    assert not agent.store.namespaces()


def test_the_agent_says_why_its_reader_failed(micro):
    env = micro.env.replace(failures=type(micro.env.reading.failures)())
    env = env.replace(
        answerer=lm_reader(Scripted(lambda _: FAILED), on_failure=env.reading.failures.append)
    )
    agent = MemoryAgent(env, scripted_writer(env, lambda turn: insert("Rex is a dog.")))
    agent.observe("Rex is a dog.")
    with pytest.raises(RuntimeError, match="no answer: reader scripted: 400: too long"):
        agent.ask("Who?")


def test_the_command_line_with_a_model_on_a_server(chat_server, tmp_path, capsys):
    def behave(body, number):
        text = text_of(body["messages"])
        return insert("Rex is a dog.") if "<new_chunk>" in text else f"{body['model']}: Rex"

    chat_server.behave = behave
    store = f"--store={tmp_path / 'me.db'}"
    writer = [f"--writer-url={chat_server.url}", "--writer-model=big"]
    cli.main(["observe", *writer, store, "Rex is a dog."])
    cli.main(["ask", *writer, store, "Who is a dog?"])
    cli.main(["ask", *writer, "--reader-model=other", store, "Who is a dog?"])
    cli.main(["show", store])
    printed = capsys.readouterr().out
    assert "big: Rex" in printed and "other: Rex" in printed and "Rex is a dog." in printed
    with pytest.raises(SystemExit, match="name its server with --writer-url"):
        cli.main(["ask", "--writer-model=big", store, "Who?"])
    with pytest.raises(SystemExit, match="name its model with --reader-model"):
        cli.main(["ask", "--checkpoint=runs/x", "--reader-url=http://x", store, "Who?"])
    chat_server.behave = lambda body, number: fails(401, "who are you?")
    with pytest.raises(SystemExit, match="who are you.*OPENAI_API_KEY"):
        cli.main(["observe", *writer, store, "Rex is a cat."])


class Seeded(Scripted):
    """Says its seed, so that equal samples are equal texts."""

    def generate(self, prompts, max_new_tokens, temperature=0.0, seed=0, tools=None):
        seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
        return [Generation(insert(f"The seed is {number}.")) for number in seeds]


def test_a_sample_of_a_prompted_writer_depends_on_episode_and_chunk_alone(micro):
    """Also where rows are refilled: its seed was once that of the first turn's chunk."""
    env = micro.env.replace(prompt_tokens=2000)
    instances = [synthetic.generate("facts", "train", n, chunks=n) for n in (3, 1, 2, 1)]

    def texts(rows, temperature):
        writer = lm_writer(env, Seeded(None), temperature, seed=5)
        episodes = run_episodes(env, instances, writer, rows=rows, ask=False)
        return [[step.text for step in episode.steps] for episode in episodes]

    together = texts(0, 0.7)
    assert texts(2, 0.7) == texts(1, 0.7) == together
    assert len({text for episode in together for text in episode}) == 7
    assert len({text for episode in texts(2, 0.0) for text in episode}) == 1  # greedy: no seed


def test_seeds_that_do_not_fit_the_chats_are_refused():
    check_seeds(3, 2), check_seeds([3, 4], 2)
    with pytest.raises(ValueError, match="2 chats but 3 seeds"):
        check_seeds([1, 2, 3], 2)
    assert own_seed(1, 2, 3) != own_seed(1, 3, 2) and 0 <= own_seed(0, 5) < 2**31
