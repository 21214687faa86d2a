"""Writers in an environment of their own, read in the environment of the evaluation."""

import pytest

from experiments.lib.written import write_and_read
from memalpha.data.instance import Instance, Question
from memalpha.episode import Clock, count_tokens
from memalpha.exactness import exact_share
from memalpha.lm.roles import prompted_environment
from memalpha.memory import MEMORY_NAMES
from memalpha.rollout import scripted_writer
from memalpha.tools import CONTENT_KEY, INSERT, Call, format_response
from tests.long_chunks import DATES, talk


@pytest.fixture
def own(micro):
    return micro.env.replace(prompt_tokens=240)


def test_it_writes_in_its_own_environment_and_is_read_in_the_other(micro, own):
    shown = []

    def respond(turn):
        shown.append(turn.text)
        call = Call(INSERT, {"memory_type": f"{MEMORY_NAMES[1]}_memory"})
        call.arguments[CONTENT_KEY[INSERT]] = turn.text.splitlines()[-1]
        return format_response([call], own.prompt.dialect)

    asked = []

    def answer(requests):
        asked.extend(requests)
        return ["parrot"] * len(requests)

    env = prompted_environment().replace(answerer=answer, top_k=2)  # counts bytes
    questions = (Question("What is the pet of Anna Berger?", ("parrot",)),)
    instance = Instance("squad", "one", (talk(DATES[0], 0, 9), talk(DATES[1], 9, 29)), questions)
    told = []
    run = write_and_read(env, own, scripted_writer(own, respond))
    (episode,) = run([instance], Clock(), lambda done, of: told.append((done, of)))
    assert episode.instance is instance and episode.scores == [1.0]
    assert len(shown) > 2 and len(episode.steps) == len(shown) and episode.r3 == episode.r3
    lasts = [text.splitlines()[-1] for text in shown]
    of_chunk = [next(n for n, c in enumerate(instance.chunks) if last in c) for last in lasts]
    assert [step.chunk for step in episode.steps] == of_chunk and set(of_chunk) == {0, 1}
    assert exact_share([episode]) == 1.0  # every piece stands in its chunk
    assert len(asked) == 1 and len(asked[0].evidence.semantic) == 2  # top k of the evaluation
    entries = [entry.text for entry in episode.view.semantic]
    assert entries == lasts
    # Sizes are counted in the tokens of the evaluation, here bytes.
    assert episode.memory_tokens == sum(count_tokens(env, text) for text in entries)
    assert episode.memory_tokens > sum(count_tokens(own, text) for text in entries)
    assert episode.chunk_tokens == sum(count_tokens(env, chunk) for chunk in instance.chunks)
    assert told[-1] == (2, 2) and [done for done, _ in told] == sorted(done for done, _ in told)
