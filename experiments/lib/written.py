"""Writers with an environment of their own, read in the environment of the evaluation.

A writer brings its tokenizer, prompt, dialect and memory sizes. Retriever, top k, reader, judges
and the tokenizer that counts are those of the evaluation, for all systems alike.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from memalpha.baselines.chats import make_view
from memalpha.data.cut import split_text
from memalpha.data.instance import Instance
from memalpha.episode import Clock, Environment, Episode, Step, Writer, count_escaped, text_room
from memalpha.reading import read_out
from memalpha.rollout import run_episodes

_DATE = re.compile(r"^\[Dialogue [^\]\n]*\]$", re.MULTILINE)
Reporter = Callable[[int, int], None]  # (chunks done, chunks in all) of a batch


def write_and_read(
    env: Environment, own: Environment, writer: Writer
) -> Callable[[Sequence[Instance], Clock, Reporter], list[Episode]]:
    """A function that lets `writer` write in its environment `own`, and reads in `env`.

    Where a chunk takes more than `text_room` of the writer's prompt, it is shown in pieces.
    """
    own = replace(own, reading=env.reading)

    def run(instances: Sequence[Instance], clock: Clock, report: Reporter) -> list[Episode]:
        cut = [[list(pieces(own, chunk)) for chunk in i.chunks] for i in instances]
        shown = [in_pieces(*pair) for pair in zip(instances, cut, strict=True)]
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
        steps = [numbered(e.steps, parts) for e, parts in zip(episodes, cut, strict=True)]
        return read_out(env, instances, steps, views, clock)

    return run


def in_pieces(instance: Instance, parts: Sequence[Sequence[str]]) -> Instance:
    """The instance with the pieces of its chunks as chunks. The notes of chunks, which are for
    scripted writers, are left out."""
    chunks = tuple(piece for of_chunk in parts for piece in of_chunk)
    metadata = {k: v for k, v in instance.metadata.items() if k != "notes"}
    return replace(instance, chunks=chunks, metadata=metadata)


def numbered(steps: Sequence[Step], parts: Sequence[Sequence[str]]) -> list[Step]:
    """The steps with the number of the chunk that their piece is of."""
    chunk_of = [chunk for chunk, of_chunk in enumerate(parts) for _ in of_chunk]
    return [replace(step, chunk=chunk_of[step.chunk]) for step in steps]


def pieces(env: Environment, chunk: str) -> Iterator[str]:
    """The chunk, or its pieces; a piece of a dialogue begins with the line that dates it."""
    count, room = partial(count_escaped, env), text_room(env)
    if count(chunk) <= room:
        yield chunk
        return
    dates = _DATE.findall(chunk)
    room -= max(map(count, dates), default=0)
    date = ""
    for part in split_text(chunk, max(room, 16), count):
        if part := part.strip():
            yield part if _DATE.match(part) or not date else f"{date}\n{part}"
        date = ([date] + _DATE.findall(part))[-1]
