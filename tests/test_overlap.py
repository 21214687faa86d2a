"""Reading and sampling at the same time: the same rewards, one update late, and an exact resume."""

import json
import threading
import zlib

import jax
import numpy as np
import pytest
from chat_server import fails

from configs import tiny
from experiments import train as loop
from experiments.lib.checks import check
from experiments.lib.failures import ReaderFailureError
from experiments.lib.instances import rollout_batches
from memalpha.lm.roles import lm_content_judge, lm_reader
from memalpha.lm.server import ServerModel
from memalpha.model import init_params
from memalpha.scoring import recall_judge
from memalpha.tools import INSERT, Call

STEPS, CHECKPOINT = 5, 3
SMALL = (
    f"rl.steps={STEPS},checkpoint_every={CHECKPOINT},rl.instances=2,rl.rollouts=2,rl.micro_batch=0,"
    "rl.schedule=constant,rl.warmup_steps=0,rl.optimizer=adamw,rl.learning_rate=0.02,rl.kl=none,"
    "rl.is_cap=2.0,rl.call_credit=False,data.chunks=1,prompt.tokens=320,prompt.response_tokens=16"
)
SERVED = {"engine": "server", "model": "m", "url": "http://127.0.0.1:1/v1"}


class Chance:
    """A reader and judge whose replies are right or not by the bits of the prompt, and so by what
    the memory holds; for questions of the step `lost` it has only an error."""

    def __init__(self, config):
        batches = rollout_batches(config)
        self.asked = {
            question.question: (step, question.answers[0])
            for step in reversed(range(STEPS))
            for instance in batches(step, config.rl.instances)
            for question in instance.questions
        }
        self.lost, self.before_answer = None, lambda step: None

    def __call__(self, body, number):
        text = body["messages"][-1]["content"]
        right = zlib.crc32(text.encode()) % 3 > 0
        if "VALID" in text:
            return json.dumps({"VALID": right})
        step, gold = next(v for question, v in self.asked.items() if question in text)
        self.before_answer(step)
        return fails(400, "no room") if step == self.lost else gold if right else "unknown"


def store_the_text(text, dialect):
    """Every response is a note: an untrained policy makes no call that can be read."""
    return [Call(INSERT, {"memory_type": "semantic", "content": text or "nothing"})]


@pytest.fixture
def run(micro, tmp_path, chat_server, monkeypatch):
    """Trains in a folder of a name; returns parameters and the lines of metrics.jsonl."""
    monkeypatch.setattr(loop, "validate", lambda *args: {})
    engine = ServerModel(chat_server.url, "m", retries=0)
    env = micro.env.replace(
        answerer=lm_reader(engine, on_failure=micro.env.reading.failures.append),
        content_judge=lm_content_judge(engine),
        answer_judge=recall_judge,
        parse=store_the_text,
        response_tokens=16,
    )
    start = init_params(micro.model, jax.random.key(0))

    def train(name, changes=""):
        config = tiny.get_config(",".join(filter(None, [SMALL, changes])))
        config.data.sources = ("synthetic_facts",)
        if chat_server.behave.__class__ is not Chance:
            chat_server.behave = Chance(config)
        folder = tmp_path / name
        params = loop.train(config, folder, env, micro.model, start, start)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return params, [json.loads(line) for line in lines]

    return train


def without(line, *names):
    return {name: value for name, value in line.items() if name not in names}


def test_rewards_are_those_without_overlap_and_resume_is_exact(
    run, tmp_path, chat_server, monkeypatch
):
    still = "rl.learning_rate=0.0"
    _, plain = run("plain", still)
    _, same = run("same", f"rl.overlap=True,{still}")
    assert plain == same and len({line["r1"] for line in plain}) > 1

    # The reader of the first batch answers only once the second one is being sampled.
    events, sampling = [], [threading.Event() for _ in range(STEPS)]

    def sample(config, env, model, policy, instances, step, clock):
        events.append(("sample", step))
        sampling[step].set()
        return take(config, env, model, policy, instances, step, clock)

    def score(config, env, sampled, step, *rest):
        result = read(config, env, sampled, step, *rest)
        events.append(("read", step))
        return result

    take, read = loop.sample, loop.score
    monkeypatch.setattr(loop, "sample", sample)
    monkeypatch.setattr(loop, "score", score)
    server = chat_server.behave
    server.before_answer = lambda step: step or sampling[1].wait(timeout=300)
    params, whole = run("whole", "rl.overlap=True")
    server.before_answer = lambda step: None
    assert events.index(("sample", 1)) < events.index(("read", 0))
    # Before the checkpoint of step 3 nothing is sampled ahead.
    assert events.index(("read", CHECKPOINT - 1)) < events.index(("sample", CHECKPOINT))
    assert len(events) == 2 * STEPS

    assert without(whole[0], "update_norm") == without(plain[0], "update_norm")
    late = [line["logp_gap_max"] > 1e-3 for line in whole]
    assert late == [False, True, True, False, True]  # of older parameters
    assert whole[1]["is_weight_mean"] != pytest.approx(1, abs=1e-4)

    # The reader dies while the batch of the last step is in flight: nothing of it is trained.
    server.lost = STEPS - 1
    with pytest.raises(ReaderFailureError, match="step 4: .*100%.*400: no room"):
        run("killed", "rl.overlap=True")
    log = tmp_path / "killed" / "metrics.jsonl"
    assert len(log.read_text().splitlines()) == STEPS - 1
    assert [p.name for p in (tmp_path / "killed" / "checkpoints" / "rl").iterdir()] == ["3"]
    server.lost = None
    continued, lines = run("killed", "rl.overlap=True")
    assert lines == whole
    jax.tree.map(np.testing.assert_array_equal, continued, params)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rl.is_cap": 0.0}, "rl.overlap=True with rl.is_cap=0.0"),
        ({"rl.algorithm": "ppo", "rl.call_credit": False}, "rl.overlap=True needs rl.algorithm"),
        ({"reader.engine": "offline"}, "reader.engine=offline and judge.engine=offline"),
        ({"checkpoint_every": 1}, "rl.overlap=True with checkpoint_every=1"),
    ],
)
def test_where_overlap_cannot_be_or_is_of_no_use_it_is_refused_at_the_start(changes, said):
    config = tiny.get_config("rl.overlap=True,rl.is_cap=2.0")
    config.reader.update(SERVED)
    check(config)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=said):
        check(config)
