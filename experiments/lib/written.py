"""Writers with an environment of their own, read in the environment of the evaluation.

A writer brings its tokenizer, prompt, dialect and memory sizes. Retriever, top k, reader, judges
and the tokenizer that counts are those of the evaluation, for all systems alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from memalpha.baselines.chats import make_view
from memalpha.data.instance import Instance
from memalpha.episode import Clock, Environment, Episode, Writer
from memalpha.pieces import as_given, fitting, within_room
from memalpha.reading import read_out
from memalpha.rollout import run_episodes

Reporter = Callable[[int, int], None]  # (chunks done, chunks in all) of a batch


def write_and_read(
    env: Environment, own: Environment, writer: Writer
) -> Callable[[Sequence[Instance], Clock, Reporter], list[Episode]]:
    """A function that lets `writer` write in its environment `own`, and reads in `env`.

    Where a chunk takes more than `text_room` of the writer's prompt, it is shown in pieces.
    """
    own = replace(own, reading=env.reading)

    def run(instances: Sequence[Instance], clock: Clock, report: Reporter) -> list[Episode]:
        shown = [fitting(own, instance, within_room) for instance in instances]
        chunks = sum(len(instance.chunks) for instance in instances)
        episodes = run_episodes(
            own,
            shown,
            writer,
            clock=clock,
            on_chunk=lambda done, total: report(chunks * done // total, chunks),
            ask=False,
        )
        views = [make_view(env, e.view.core, e.view.semantic, e.view.episodic) for e in episodes]
        steps = [episode.steps for episode in as_given(episodes, instances)]
        return read_out(env, instances, steps, views, clock)

    return run
