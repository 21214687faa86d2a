"""Episodes: what comes of what a writer says, and the rows that training gets of it."""

import json

import jax
import numpy as np
import pytest

from memalpha.baselines.scripted import Flaws, perfect, poor_response
from memalpha.data import synthetic
from memalpha.data.instance import Instance, Question
from memalpha.episode import Clock, count_tokens
from memalpha.memory import Outcome
from memalpha.model import init_params
from memalpha.prompts import PromptTooLong, fit_prompt
from memalpha.reader_rules import extractive_answers
from memalpha.retrieval import make_index
from memalpha.rollout import run_episodes, scripted_writer, to_batch
from memalpha.tokenizer import decode, encode
from memalpha.tools import format_call, format_response
from memalpha.writer import policy_writer

ROWS = 4  # of a device batch in these tests


def insert(content, memory_type="semantic"):
    arguments = {"memory_type": memory_type, "content": content}
    return format_call("new_memory_insert", arguments, "qwen3")


def update(content, memory_type="core", memory_id=None):
    arguments = {"memory_type": memory_type, "new_content": content}
    arguments |= {} if memory_id is None else {"memory_id": memory_id}
    return format_call("memory_update", arguments, "qwen3")


def delete(memory_id, memory_type="semantic"):
    arguments = {"memory_type": memory_type, "memory_id": memory_id}
    return format_call("memory_delete", arguments, "qwen3")


def says(env, *texts):
    """A writer that says texts[chunk] at each chunk, whatever it is shown."""
    return scripted_writer(env, lambda turn: texts[turn.chunk])


def perfect_writer(env):
    return scripted_writer(
        env, lambda t: format_response(perfect(t.instance, t.chunk, t.view), env.prompt.dialect)
    )


def poor_writer(env, seed=0, **options):
    rng = np.random.default_rng(seed)
    return scripted_writer(
        env,
        lambda t: poor_response(t.instance, t.chunk, t.view, env.prompt.dialect, rng, Flaws()),
        **options,
    )


def tiny(*chunks, questions=(("What is the pet of Anna Berger?", "parrot"),)):
    return Instance(
        source="synthetic_facts",
        instance_id="tiny",
        chunks=chunks,
        questions=tuple(Question(q, (a,)) for q, a in questions),
    )


PETS = ("The pet of Anna Berger is a parrot.", "The pet of Paul Lind is a ferret.")


@pytest.fixture(scope="module")
def policy(micro):
    """Writers of one random micro policy; `limit` keeps its responses short."""
    params = init_params(micro.model, jax.random.key(0))
    env = micro.env.replace(response_tokens=8)

    def writer(key=1, rows=ROWS, **options):
        key = jax.random.key(key)
        return policy_writer(params, micro.model, env, rows, key, **options)

    return env, writer


def test_rewards_of_one_episode_by_hand(micro):
    env = micro.env
    questions = (
        ("What is the pet of Anna Berger?", "parrot"),
        ("What is the pet of Paul Lind?", "ferret"),
        ("What is the trade of Tara Voss?", "pilot"),  # stands in no chunk
    )
    instance = tiny(*PETS, questions=questions)
    first = "\n".join([insert(PETS[0]), insert(PETS[0]), insert("2019/03/14: It rained in Bern.")])
    second = "\n".join(
        [insert(PETS[1]), update("x y", "semantic", 99), delete(2), "<tool_call>\n{"]
    )
    (episode,) = run_episodes(env, [instance], says(env, first, second))
    one, two = episode.steps
    assert one.outcomes == [Outcome.OK, Outcome.DUPLICATE, Outcome.OK]
    assert one.fit == [True, True, False]  # a dated event is no semantic memory
    assert two.outcomes == [Outcome.OK, Outcome.UNKNOWN_ID, Outcome.OK, Outcome.MALFORMED]
    assert one.r2 == np.float32(2 / 3) and one.r4 == np.float32(1 / 3)
    assert two.r2 == 0.5 and two.r4 == 0.5
    assert [entry.text for entry in episode.view.semantic] == list(PETS)
    assert [entry.id for entry in episode.view.semantic] == [1, 3]
    assert episode.scores == [1.0, 1.0, 0.0]
    assert episode.r1 == np.float32(2 / 3)
    held = sum(len(encode(env.prompt.tokenizer, pet)) for pet in PETS)
    assert episode.memory_tokens == held == episode.chunk_tokens
    assert episode.r3 == 0.0


def test_compression_by_hand(micro):
    long = " ".join([PETS[0]] * 5)
    (episode,) = run_episodes(micro.env, [tiny(long)], says(micro.env, insert(PETS[0])))
    held, read = count_tokens(micro.env, PETS[0]), count_tokens(micro.env, long)
    assert episode.r3 == pytest.approx(1 - held / read) and episode.r3 > 0.5
    assert episode.r1 == 1.0


def test_perfect_writer_on_facts_and_poor_writer_below_it(micro):
    instances = [synthetic.generate("facts", "train", i, chunks=3) for i in range(6)]
    best = run_episodes(micro.env, instances, perfect_writer(micro.env))
    poor = run_episodes(micro.env, instances, poor_writer(micro.env))
    for episode in best:
        assert [(step.r2, step.r4) for step in episode.steps] == [(1.0, 1.0)] * 3

    def mean(episodes, name):
        return np.mean([getattr(step, name) for e in episodes for step in e.steps])

    assert np.mean([e.r1 for e in best]) > 0.9
    assert np.mean([e.r1 for e in poor]) < 0.7
    assert mean(poor, "r2") < 0.95 and mean(poor, "r4") < mean(poor, "r2")


def test_a_silent_writer_earns_nothing_but_compression(micro):
    (episode,) = run_episodes(micro.env, [tiny(*PETS)], says(micro.env, "", "Noted."))
    assert [(step.r2, step.r4, step.calls) for step in episode.steps] == [(0.0, 0.0, [])] * 2
    assert (episode.r1, episode.r3, episode.memory_tokens) == (0.0, 1.0, 0)


def test_episodes_of_unequal_length_share_a_batch_unharmed(micro):
    instances = [synthetic.generate("updates", "train", n, chunks=n) for n in (1, 4, 2)]
    seen = []
    together = run_episodes(
        micro.env,
        instances,
        perfect_writer(micro.env),
        keep_views=True,
        on_chunk=lambda done, all_: seen.append((done, all_)),
    )
    assert seen == [(n, 7) for n in (3, 5, 6, 7)]
    for episode, instance in zip(together, instances, strict=True):
        assert [step.chunk for step in episode.steps] == list(range(len(instance.chunks)))
        (alone,) = run_episodes(micro.env, [instance], perfect_writer(micro.env), keep_views=True)
        assert alone.view == episode.view
        assert alone.view == alone.steps[-1].view  # nothing changes after the last chunk
        assert [s.view for s in alone.steps] == [s.view for s in episode.steps]
        assert (alone.r1, alone.r3) == (episode.r1, episode.r3)


def unequal(*chunks):
    families = sorted(synthetic.GENERATORS)
    return [
        synthetic.generate(families[i % len(families)], "train", i, chunks=n)
        for i, n in enumerate(chunks)
    ]


def counting(writer, turns_seen):
    def write(turns):
        turns_seen.append([(turn.row, turn.episode, turn.chunk) for turn in turns])
        return writer(turns)

    return write


def test_waiting_episodes_take_the_rows_of_finished_ones(micro):
    """By hand: of 1, 4, 2, 3, 1, 2 chunks the longest three go first, the single ones last."""
    seen = []
    writer = counting(perfect_writer(micro.env), seen)
    episodes = run_episodes(micro.env, unequal(1, 4, 2, 3, 1, 2), writer, rows=3)
    assert seen == [
        [(0, 1, 0), (1, 2, 0), (2, 3, 0)],
        [(0, 1, 1), (1, 2, 1), (2, 3, 1)],
        [(0, 1, 2), (1, 5, 0), (2, 3, 2)],
        [(0, 1, 3), (1, 5, 1), (2, 0, 0)],
        [(0, 4, 0)],
    ]
    assert [len(episode.steps) for episode in episodes] == [1, 4, 2, 3, 1, 2]
    with pytest.raises(ValueError, match="rows=-1"):
        run_episodes(micro.env, unequal(1), writer, rows=-1)


@pytest.mark.parametrize("rows", [1, 3, 5, 40])
def test_an_episode_does_not_depend_on_the_rows_there_are(micro, rows):
    env = micro.env.replace(first_ids=(5, 2000))
    instances = unequal(1, 9, 2, 3, 12, 1, 2, 4, 8)

    def run(**options):
        return run_episodes(env, instances, perfect_writer(env), seed=3, keep_views=True, **options)

    for one, other in zip(run(), run(rows=rows), strict=True):
        assert other.view == one.view and other.view.tokens > 0  # texts, ids, provenance
        assert [s.view for s in other.steps] == [s.view for s in one.steps]
        prompts = ([s.response.prompt.tolist() for s in episode.steps] for episode in (other, one))
        assert next(prompts) == next(prompts)
        assert [s.outcomes for s in other.steps] == [s.outcomes for s in one.steps]
        assert (other.r1, other.r3, other.answers) == (one.r1, one.r3, one.answers)
        written = [entry.written_at for entry in (*one.view.semantic, *one.view.episodic)]
        assert set(written) <= set(range(len(one.instance.chunks)))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_refilled_rows_write_what_they_would_in_lockstep(policy, temperature):
    env, writer = policy
    instances = unequal(1, 3, 2, 1, 2)

    def run(episodes_at_once, device_rows):
        made = run_episodes(
            env,
            instances,
            writer(temperature=temperature, rows=device_rows),
            rows=episodes_at_once,
        )
        return [[step.response for step in episode.steps] for episode in made]

    lockstep = run(0, ROWS)
    for other in (run(2, 2), run(ROWS, ROWS)):
        for one, two in zip(sum(lockstep, []), sum(other, []), strict=True):
            np.testing.assert_array_equal(one.tokens, two.tokens)
            np.testing.assert_allclose(one.logps, two.logps, atol=1e-5)


def test_without_questions_an_episode_is_written_all_the_same(micro):
    instances = synthetic.generate_many(["facts", "story"], "train", 2)
    writer = perfect_writer(micro.env)
    unread = micro.env.replace(answerer=None)  # would fail if it were asked
    asked = run_episodes(micro.env, instances, writer)
    silent = run_episodes(unread, instances, writer, ask=False)
    assert [e.view for e in silent] == [e.view for e in asked]
    assert not any(e.valid or e.answers for e in silent)


def test_the_writer_is_shown_the_memory_and_the_chunk(micro):
    shown = []

    def respond(turn):
        shown.append(decode(micro.tokenizer, fit_prompt(micro.env.prompt, turn.view, turn.text)))
        return insert(turn.instance.chunks[turn.chunk])

    chunks = [f"The pet of Anna Berger {n} is a parrot." for n in range(4)]
    run_episodes(micro.env, [tiny(*chunks)], scripted_writer(micro.env, respond))
    for n, prompt in enumerate(shown):
        assert f"<new_chunk>{chunks[n]}</new_chunk>" in prompt
        recent = [f"[{i + 1}] {chunks[i]}" for i in range(n)][-micro.env.prompt.recent :]
        assert all(entry in prompt for entry in recent)
        assert prompt.count("] The pet") == len(recent)


def test_memory_grows_past_its_first_capacity_and_loses_nothing(micro):
    env = micro.env.replace(max_calls=4, top_k=50)
    many = [insert(f"The hobby of person {n} is chess.") for n in range(24)]
    texts = ["\n".join(many[i : i + 4]) for i in range(0, 24, 4)]
    (episode,) = run_episodes(env, [tiny(*[PETS[0]] * 6)], says(env, *texts))
    assert all(outcome == Outcome.OK for step in episode.steps for outcome in step.outcomes)
    assert len(episode.view.semantic) == 24  # the arrays began with room for 16
    assert [entry.written_at for entry in episode.view.semantic] == [n // 4 for n in range(24)]


def test_calls_past_the_limit_are_not_executed_and_count_as_failed(micro):
    env = micro.env.replace(max_calls=3)
    text = "\n".join(insert(f"The hobby of person {n} is chess.") for n in range(5))
    (episode,) = run_episodes(env, [tiny(PETS[0])], says(env, text))
    (step,) = episode.steps
    assert step.outcomes == [Outcome.OK] * 3 + [Outcome.MALFORMED] * 2
    assert (step.r2, step.r4) == (np.float32(0.6), np.float32(0.6))
    assert len(step.calls) == len(step.fit) == 5
    assert len(episode.view.semantic) == 3


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n{",
        "<tool_call>" * 3,
        "<tool_call>\n{}\n</tool_call>",
        '<tool_call>\n{"name": "format_disk", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "new_memory_insert", "arguments": [1]}\n</tool_call>',
        insert("Some words.", "diary"),
        insert("Some words.", "core"),
        insert(""),
        update("Some words.", "semantic", "seven"),
        insert("word " * 100),  # longer than an entry
        delete(1),
        "\x00\x1b\ufffd日本語<tool_call>\n[]\n</tool_call>",
    ],
)
def test_a_malformed_response_fails_and_changes_nothing(micro, text):
    (episode,) = run_episodes(micro.env, [tiny(PETS[0])], says(micro.env, text))
    (step,) = episode.steps
    assert step.calls and Outcome.OK not in step.outcomes
    assert (step.r2, step.r4, episode.r1, episode.memory_tokens) == (0.0, 0.0, 0.0, 0)


def test_disabled_memories_take_nothing(micro):
    env = micro.env.replace(enabled=(True, False, False))
    text = "\n".join([insert(PETS[0]), update(PETS[1])])
    (episode,) = run_episodes(env, [tiny(PETS[0])], says(env, text))
    assert episode.steps[0].outcomes == [Outcome.WRONG_TYPE, Outcome.OK]
    assert (episode.view.core, episode.view.semantic) == (PETS[1], ())


def test_a_core_that_is_too_long_is_cut_visibly(micro):
    env = micro.env.replace(core_tokens=16)
    (episode,) = run_episodes(env, [tiny(PETS[0])], says(env, update("word " * 40)))
    assert episode.view.core.endswith("[cut]") and episode.memory_tokens == 16


@pytest.mark.parametrize(
    "chunk", ["日本語の本。", "مرحبا بالعالم", "a\x00b\x1b[31m\u2028c", "👩‍👩‍👧 ok"]
)
def test_any_script_and_control_characters_run_through(micro, chunk):
    chunk += " </new_chunk><|im_end|><tool_call>"
    writer = scripted_writer(
        micro.env, lambda turn: insert(turn.instance.chunks[0]), with_prompts=True
    )
    (episode,) = run_episodes(micro.env, [tiny(chunk, questions=(("Which book?", "本"),))], writer)
    ids = episode.steps[0].response.prompt
    prompt = decode(micro.tokenizer, ids)
    assert prompt.count("</new_chunk>") == 1  # the chunk closes no tag
    assert micro.tokenizer.eos_token_id not in ids
    assert np.isfinite([episode.r1, episode.r3, episode.steps[0].r2]).all()


def test_equal_memories_are_indexed_once(micro, monkeypatch):
    indexed = []

    def index(texts, *options):
        indexed.append(texts)
        return make_index(texts, *options)

    monkeypatch.setattr("memalpha.reading.make_index", index)
    instances = [tiny(PETS[0]), tiny(PETS[0], questions=BOTH), tiny(PETS[1]), tiny(PETS[0])]
    writer = scripted_writer(micro.env, lambda turn: insert(turn.text))
    episodes = run_episodes(micro.env, instances, writer)
    # The lists of entries that there are: none (all episodic ones), and each pet.
    assert sorted(indexed) == [[], [PETS[0]], [PETS[1]]]
    assert [episode.r1 for episode in episodes] == [1.0, 0.5, 0.0, 1.0]


def test_a_scripted_writer_renders_a_prompt_only_where_it_is_asked_for(micro, monkeypatch):
    rendered = []

    def fit(*arguments):
        rendered.append(arguments)
        return fit_prompt(*arguments)

    monkeypatch.setattr("memalpha.rollout.fit_prompt", fit)
    (silent,) = run_episodes(micro.env, [tiny(*PETS)], says(micro.env, "", ""))
    assert not rendered and [step.response.prompt.size for step in silent.steps] == [0, 0]
    writer = scripted_writer(micro.env, lambda turn: "", with_prompts=True)
    (shown,) = run_episodes(micro.env, [tiny(*PETS)], writer)
    assert len(rendered) == 2
    for step, arguments in zip(shown.steps, rendered, strict=True):
        assert step.response.prompt.tolist() == fit_prompt(*arguments)


def test_a_prompt_that_cannot_fit_says_so(micro):
    writer = scripted_writer(micro.env, lambda turn: "", with_prompts=True)
    with pytest.raises(PromptTooLong, match="a prompt of 20, nor does a piece of it of 16"):
        run_episodes(micro.env.replace(prompt_tokens=20), [tiny("unheard " * 400)], writer)


def test_first_ids_are_drawn_from_their_range_by_seed(micro):
    env = micro.env.replace(first_ids=(5, 2000))

    def ids(seed):
        episodes = run_episodes(env, [tiny(PETS[0])] * 4, says(env, insert("Some words.")), seed)
        return [episode.view.semantic[0].id for episode in episodes]

    assert ids(1) == ids(1) != ids(2)
    assert all(5 <= i <= 2000 for i in ids(1)) and len(set(ids(1))) > 1


def failing_for(*questions):
    def answerer(requests):
        replies = extractive_answers(requests)
        return [
            None if r.question in questions else reply
            for r, reply in zip(requests, replies, strict=True)
        ]

    return answerer


BOTH = (("What is the pet of Anna Berger?", "parrot"), ("Who is Tara Voss?", "pilot"))


def test_a_failed_answer_is_left_out_of_r1(micro):
    env = micro.env.replace(answerer=failing_for(BOTH[1][0]))
    (episode,) = run_episodes(env, [tiny(PETS[0], questions=BOTH)], says(env, insert(PETS[0])))
    assert episode.scores[0] == 1.0 and np.isnan(episode.scores[1])
    assert episode.r1 == 1.0 and episode.valid
    assert episode.answers[1].text is None


def test_an_episode_without_any_answer_is_masked(micro):
    env = micro.env.replace(answerer=failing_for(BOTH[0][0]))
    instances = [tiny(PETS[0]), tiny(PETS[0], questions=BOTH)]
    episodes = run_episodes(env, instances, says(env, insert(PETS[0])))
    assert [episode.valid for episode in episodes] == [False, True]
    batch = to_batch(episodes, 1, 320, 128, 3)
    assert batch.rows.valid.tolist() == [False, True, False]
    assert all(np.isfinite(values).all() for values in batch.rows.rewards.values())
    assert all(values[0] == 0 for values in batch.rows.rewards.values())
    assert (
        batch.rows.rewards["r1"].tolist() == [0.0, 0.0, 0.0] and batch.rows.rewards["r2"][1] == 1.0
    )


def test_rows_of_a_batch(micro):
    instances = [synthetic.generate("facts", "train", n, chunks=n + 1) for n in (1, 1, 2, 2)]
    episodes = run_episodes(micro.env, instances, poor_writer(micro.env, with_prompts=True))
    batch = to_batch(episodes, 2, 320, 160, 12)
    steps = [(e, step) for e, episode in enumerate(episodes) for step in episode.steps]
    assert batch.tokens.completion.shape == (12, 160) and batch.tokens.prompt.shape == (12, 320)
    assert batch.rows.valid.tolist() == [True] * 10 + [False] * 2
    assert batch.rows.episode.tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3, -1, -1]
    assert batch.rows.instance.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, -1, -1]
    assert batch.rows.chunk.tolist() == [0, 1, 0, 1, 0, 1, 2, 0, 1, 2, -1, -1]
    assert not batch.tokens.completion_mask[10:].any() and not batch.tokens.prompt_mask[10:].any()
    for row, (e, step) in enumerate(steps):
        tokens = batch.tokens
        prompt, completion = tokens.prompt[row], tokens.completion[row]
        np.testing.assert_array_equal(prompt[tokens.prompt_mask[row]], step.response.prompt)
        np.testing.assert_array_equal(completion[tokens.completion_mask[row]], step.response.tokens)
        assert step.response.tokens[-1] == micro.tokenizer.eos_token_id  # it is trained
        wanted = {"r1": episodes[e].r1, "r2": step.r2, "r3": episodes[e].r3, "r4": step.r4}
        assert {k: v[row] for k, v in batch.rows.rewards.items()} == pytest.approx(wanted)
    assert {v.dtype for v in batch.rows.rewards.values()} == {np.dtype(np.float32)}
    with pytest.raises(ValueError, match="cannot be filled to 9"):
        to_batch(episodes, 2, 320, 160, 9)


def test_policy_rows_keep_what_was_sampled(micro, policy):
    env, writer = policy
    instances = [synthetic.generate("facts", "train", 0, chunks=1)] * 3
    clock = Clock()
    episodes = run_episodes(env, instances, writer(), clock=clock)
    assert set(clock) == {"render", "write", "parse", "apply", "judge", "retrieve", "read"}
    batch = to_batch(episodes, 3, 320, 8, 4)
    for row, episode in enumerate(episodes):
        response = episode.steps[0].response
        size = len(response.tokens)
        assert batch.tokens.completion_mask[row].sum() == size == len(response.logps)
        np.testing.assert_array_equal(batch.targets.sample_logps[row, :size], response.logps)
        assert (response.logps < 0).all() and np.isnan(batch.targets.sample_logps[row, size:]).all()
        assert response.finished == (response.tokens[-1] == micro.tokenizer.eos_token_id)
    sampled = [episode.steps[0].response.tokens.tolist() for episode in episodes]
    assert sampled[0] != sampled[1]  # rollouts of one instance differ


def test_an_episode_does_not_depend_on_batch_company(policy):
    env, writer = policy
    instances = [synthetic.generate("facts", "train", i, chunks=2) for i in range(6)]

    def tokens(episodes):
        return [[step.response.tokens.tolist() for step in episode.steps] for episode in episodes]

    in_six = tokens(run_episodes(env, instances, writer()))  # two batches, the last half full
    in_three = tokens(run_episodes(env, instances[:3], writer()))
    other = [*instances[:2], *instances[3:]]
    assert in_three == in_six[:3]
    assert tokens(run_episodes(env, other, writer()))[:2] == in_six[:2]
    assert tokens(run_episodes(env, instances[:3], writer(key=2))) != in_three
    chunks = {json.dumps(step) for episode in in_six for step in episode}
    assert len(chunks) == 12  # no two draws are the same, not even of one episode


def test_greedy_and_limits(policy):
    env, writer = policy
    instances = [synthetic.generate("facts", "train", 0, chunks=1)] * 2
    greedy = run_episodes(env, instances, writer(temperature=0.0))
    first, second = (episode.steps[0].response.tokens for episode in greedy)
    np.testing.assert_array_equal(first, second)
    assert len(first) <= env.prompt.response_tokens
