"""How much likelier a memory makes the right answers: against the model itself, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from experiments.lib.checks import check
from experiments.train import LIKELIHOOD, reward_weights, step_metrics, training_batch
from memalpha.data.instance import Instance, Question
from memalpha.lm.interface import Counted
from memalpha.lm.likelihood import ROWS, gains, log_likelihoods
from memalpha.lm.local import FlaxModel
from memalpha.lm.roles import lm_reader
from memalpha.model import Transformer, init_params, logits
from memalpha.prompts import encode_messages, load_template
from memalpha.reader import Evidence, Request
from memalpha.rollout import run_episodes, scripted_writer
from memalpha.tokenizer import encode, response_end
from memalpha.tools import INSERT, format_call

FACTS = ("Ada lives in Graz.", "Bob lives in Pisa.")
QUESTIONS = tuple(
    Question(f"Where does {fact.split()[0]} live?", (fact.split()[-1][:-1],)) for fact in FACTS
)


@pytest.fixture(scope="module")
def params(micro):
    return init_params(micro.model, jax.random.key(5))


def engine(micro, params, context_tokens=2048):
    return FlaxModel("micro", micro.model, params, micro.tokenizer, context_tokens)


def ask(text):
    return [{"role": "user", "content": text}]


def by_hand(micro, params, chat, reply):
    """The mean log-probability of the tokens of a reply, from the logits of one whole row."""
    prompt = encode_messages(chat, micro.tokenizer)
    answer = [*encode(micro.tokenizer, reply), response_end(micro.tokenizer)]
    ids = jnp.array([[*prompt, *answer]])
    positions, mask = jnp.arange(ids.shape[1])[None], jnp.ones(ids.shape, bool)
    hidden, _ = Transformer(micro.model).apply({"params": params}, ids, positions, mask)
    logps = jax.nn.log_softmax(logits(params, hidden[0], micro.model))
    places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return float(np.mean([logps[p, t] for p, t in zip(places, answer, strict=True)]))


def test_likelihoods_are_those_of_the_model(micro, params):
    chats = [ask("Rex is a dog. " * n) for n in range(1, ROWS + 3)]
    replies = ["a dog", "Basel", "x"] * 4
    pairs = list(zip(chats, replies, strict=False))
    found = log_likelihoods(engine(micro, params), chats, [reply for _, reply in pairs])
    assert np.allclose(found, [by_hand(micro, params, *pair) for pair in pairs], atol=1e-4)
    short = log_likelihoods(engine(micro, params, 40), chats[:1] + chats[-1:], ["a dog"] * 2)
    assert np.isfinite(short[0]) and np.isnan(short[1])


def rollouts(micro, answerer):
    """One rollout that stores both facts and one that stores the first, read by `answerer`."""
    instance = Instance("squad", "facts", FACTS, QUESTIONS)
    call = lambda text: format_call(INSERT, {"memory_type": "semantic", "content": text}, "qwen3")
    respond = lambda turn: call(turn.text) if turn.episode == 0 or turn.chunk == 0 else ""
    env = micro.env.replace(answerer=answerer)
    return env, run_episodes(env, [instance] * 2, scripted_writer(env, respond))


@pytest.fixture(scope="module")
def read(micro, params):
    model = Counted(engine(micro, params))
    return rollouts(micro, lm_reader(model, load_template("compact"), max_new_tokens=4))


def test_the_gain_is_with_memory_less_without(micro, params, read):
    env, episodes = read
    reader = env.reading.answerer
    found = gains(episodes, reader.engine.engine, reader.chat)
    for episode, value in zip(episodes, found, strict=True):
        expected = []
        for request, question in zip(episode.recall.requests, QUESTIONS, strict=True):
            (gold,) = question.answers
            bare = Request(question.question, "squad", Evidence())
            with_memory = by_hand(micro, params, reader.chat(request), gold)
            expected.append(with_memory - by_hand(micro, params, reader.chat(bare), gold))
        assert np.isclose(value, np.mean(expected), atol=1e-4)
    assert found[0] != found[1] and found.dtype == np.float32
    assert np.isnan(gains(episodes[:1], engine(micro, params, 20), reader.chat)).all()


def test_it_is_a_reward_of_the_episode(read):
    env, episodes = read
    config = tiny.get_config("data.chunks=2,rl.rollouts=2,rl.call_credit=False")
    config.prompt.tokens, config.prompt.response_tokens = 320, 128
    config.reward.likelihood, config.reader.engine = 0.5, "flax"
    rewards = training_batch(config, env, episodes).rows.rewards
    reader = env.reading.answerer
    assert np.array_equal(
        rewards[LIKELIHOOD], np.repeat(gains(episodes, reader.engine.engine, reader.chat), 2)
    )
    assert sorted(reward_weights(config)) == sorted(rewards)
    assert list(step_metrics(config, training_batch(config, env, episodes))) == [
        "reward_likelihood"
    ]


def test_it_needs_a_reader_in_this_process():
    config = tiny.get_config()
    config.reward.likelihood = 0.5
    with pytest.raises(ValueError, match="config.reader.engine='offline' should be flax"):
        check(config)
