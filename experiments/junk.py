"""How much of what is worth nothing does a writer store? Small talk, line by line.

    python -m experiments.junk --checkpoint=runs/tiny
    python -m experiments.junk --checkpoint=smollm2 --dialogue --out=junk.json

Every line of experiments/lib/small_talk.txt is a chunk, in streams of 8. A stream begins with a few
chunks of synthetic chats whose notes are stored for the writer, so that its memory is not empty.
The share of lines at which it stores anything should be 0. No line stands in the training data.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from absl import app, flags

from experiments.lib.command import command
from experiments.lib.progress import console, progress
from experiments.lib.writers import perfect_writer
from memalpha.agent.memory_agent import dialogue
from memalpha.data import synthetic
from memalpha.data.files import write_text
from memalpha.data.instance import Instance
from memalpha.episode import Environment, Step, Turn, Writer
from memalpha.memory import Outcome
from memalpha.paths import user_path
from memalpha.pieces import as_given, chunk_number
from memalpha.policy import load_policy
from memalpha.rollout import run_episodes
from memalpha.tools import CONTENT_KEY, INSERT, UPDATE

LINES = Path(__file__).parent / "lib" / "small_talk.txt"
STREAM = 8  # lines of a stream
ROWS = 2  # streams at the same time: prompts of pretrained models may be long
BEFORE = 3  # chunks of synthetic chats before them
DATE = "2025-04-12 18:30"  # of lines that are shown as dialogues


@dataclass(frozen=True)
class Junk:
    """A line and what was stored at it, empty if nothing; `called`: whether any call was made."""

    line: str
    stored: list[str]
    called: bool


def read_lines(path: str | Path = LINES) -> list[str]:
    """The lines of a file that are not empty; raises ValueError without any."""
    lines = [line for line in user_path(path).read_text(encoding="utf-8").splitlines() if line]
    if not lines:
        raise ValueError(f"{path} holds no lines")
    return lines


def streams(lines: Sequence[str], as_dialogue: bool = False) -> list[Instance]:
    """One instance for each `STREAM` lines: `BEFORE` chunks of a test chat, then the lines.

    as_dialogue: each line in the form in which `MemoryAgent` shows its writer what it is told.
    """
    made = []
    for start in range(0, len(lines), STREAM):
        index = start // STREAM
        chat = synthetic.generate(
            "chats", "test", index, chunks=BEFORE, filler_share=0.0, empty_share=0.0
        )
        part = lines[start : start + STREAM]
        chunks = [dialogue(line, DATE) for line in part] if as_dialogue else part
        notes = chat.metadata["notes"] + [[] for _ in part]
        made.append(
            Instance(
                chat.source,
                f"small-talk-{index}",
                (*chat.chunks, *chunks),
                chat.questions,
                {"notes": notes},
            )
        )
    return made


def measure_junk(
    env: Environment,
    writer: Writer,
    lines: Sequence[str],
    as_dialogue: bool = False,
    rows: int = ROWS,
) -> list[Junk]:
    """What a writer stores at each line; `rows` streams at the same time."""
    instances = streams(lines, as_dialogue)
    teller = perfect_writer(env)

    def write(turns: Sequence[Turn]):
        """The notes of the chat go in by rule, the lines are for the writer."""
        of_chat = [chunk_number(turn.instance, turn.chunk) < BEFORE for turn in turns]
        told = [turn for turn, of in zip(turns, of_chat, strict=True) if of]
        others = [turn for turn, of in zip(turns, of_chat, strict=True) if not of]
        told, others = iter(teller(told)), iter(writer(others) if others else [])
        return [next(told if of else others) for of in of_chat]

    with progress("lines", sum(len(i.chunks) for i in instances)) as report:
        episodes = run_episodes(
            env, instances, write, rows=rows, ask=False, on_chunk=lambda done, _: report(done)
        )
    at_line: list[list[Step]] = [[] for _ in lines]  # one step, or one for each piece of the line
    for number, episode in enumerate(as_given(episodes, instances)):
        for step in episode.steps:
            if step.chunk >= BEFORE:
                at_line[number * STREAM + step.chunk - BEFORE].append(step)
    return [_junk(line, steps) for line, steps in zip(lines, at_line, strict=True)]


def _junk(line: str, steps: Sequence[Step]) -> Junk:
    stored = [
        call.arguments[CONTENT_KEY[call.name]]
        for step in steps
        for call, outcome in zip(step.calls, step.outcomes, strict=True)
        if outcome == Outcome.OK and call.name in (INSERT, UPDATE)
    ]
    return Junk(line, stored, any(step.calls for step in steps))


def summary(junk: Sequence[Junk]) -> dict[str, float]:
    """Shares of the lines at which something was stored, and at which any call was made."""
    return {
        "lines": len(junk),
        "stored": sum(bool(j.stored) for j in junk) / len(junk),
        "called": sum(j.called for j in junk) / len(junk),
    }


def main(argv: list[str]) -> None:
    args = flags.FLAGS
    with command(argv):
        policy = load_policy(args.checkpoint, args.stage, args.step)
        writer = policy.writer(rows=args.rows, temperature=args.temperature)
        lines = read_lines(args.lines)
        junk = measure_junk(policy.env, writer, lines, args.dialogue, args.rows)
        shares = summary(junk)
        if args.out:
            rows = [vars(j) for j in junk]
            about = {"writer": policy.name, "dialogue": args.dialogue} | shares
            text = json.dumps(about | {"of": rows}, indent=1, ensure_ascii=False)
            write_text(user_path(args.out), text)
    for j in junk:
        for content in j.stored:
            console.print(f"{j.line!r} -> {content!r}", markup=False)
    console.print(
        f"{policy.name}: stored something at {shares['stored']:.3f} of {shares['lines']} lines,"
        f" made a call at {shares['called']:.3f}",
        markup=False,
    )


def define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "Workdir, model folder, GGUF or name.", required=True)
    flags.DEFINE_string("stage", None, "Of a workdir: rl or warm_start; none: the last.")
    flags.DEFINE_integer("step", None, "Of that stage; none: the last.")
    flags.DEFINE_string("lines", str(LINES), "File with a line of small talk a line.")
    flags.DEFINE_bool("dialogue", False, "Show each line as MemoryAgent shows what it is told.")
    flags.DEFINE_float("temperature", 0.0, "Of the writer; 0: greedy.")
    flags.DEFINE_integer("rows", ROWS, "Streams at once; more need memory.", lower_bound=1)
    flags.DEFINE_string("out", "", "JSON file for shares and contents.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
