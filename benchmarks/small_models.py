"""What a pretrained chat model does as reader, as content judge and as prompted writer.

    python -m memalpha.data build --source=squad,nlu,trec_coarse,hotpotqa --raw_dir=DIR --out=OUT --split=test --shrink
    python -m benchmarks.small_models --role=reader --model=smollm2 --data=OUT --questions=20
    python -m benchmarks.small_models --role=judge --model=smollm2
    python -m benchmarks.small_models --role=writer --model=model.gguf --data=OUT --chunks=4

reader: questions on the evidence that `store_everything` finds, answered by the offline rules and
by the model; a mean over questions with its interval, and seconds a question. The interval draws
whole instances where there are several, since their questions rise and fall together, and
questions where there is one.
judge: the 200 contents of `benchmarks/data/judge_contents.jsonl`, half of which fit the memory they
are put in, labelled by hand; agreement counts a reply without a verdict as wrong.
writer: chunks of a synthetic stream and of the built sources, written by the model; r2 is the share
of calls that were carried out, r1 the score of the offline rules on the memory, and r1 of
`store_everything` is what they score on the same text.

`--show=N` prints N replies of each source as they stand.
"""  # noqa: E501

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from experiments.lib.intervals import estimate, pooled
from memalpha.baselines import store_everything
from memalpha.data import built_sets, synthetic
from memalpha.data.cut import split_text
from memalpha.data.instance import Instance
from memalpha.episode import Environment
from memalpha.judge import ContentJudge
from memalpha.judge_rules import judge_contents
from memalpha.lm.local import FlaxModel
from memalpha.lm.roles import lm_content_judge, lm_reader, lm_writer, prompted_environment
from memalpha.reading import run_baseline
from memalpha.rollout import run_episodes
from memalpha.scoring import category, recall_judge
from memalpha.tools import INSERT, UPDATE, Call

TOKENS = {"reader": 32, "judge": 96, "writer": 256}  # of a reply
CHUNK_TOKENS = 200  # of a chunk of real text that is written
CONTENTS = Path(__file__).parent / "data" / "judge_contents.jsonl"


def read(engine: FlaxModel, env: Environment, folder: Path, options) -> None:
    """One line for a source: model and rules on the same evidence."""
    instances, wanted = [], options.questions
    for instance in built_sets.Built(folder):
        instances.append(replace(instance, questions=instance.questions[:wanted]))
        wanted -= len(instances[-1].questions)
        if not wanted:
            break
    scores, seconds = {}, 0.0
    for name in ("rules", "model"):
        if name == "model":
            env = env.replace(
                answerer=lm_reader(engine, max_new_tokens=options.tokens, one_line=True)
            )
        begin = time.perf_counter()
        episodes = run_baseline(env, instances, store_everything.recall)
        seconds = time.perf_counter() - begin
        scores[name] = [np.asarray(episode.scores) for episode in episodes]
    asked = [question for instance in instances for question in instance.questions]
    answers = [answer for episode in episodes for answer in episode.answers]
    shown = list(zip(asked, answers, np.concatenate(scores["model"]), strict=True))[: options.show]
    for question, answer, score in shown:
        print(f"  {score:.2f} {answer.text!r} for {question.answers}")
    means = [pooled(of) if len(of) > 1 else estimate(of) for of in scores.values()]
    cells = [f"{e.mean:.2f} ({e.low:.2f} to {e.high:.2f})" for e in means]
    pace = seconds / len(asked)
    print(f"| {folder.parent.name} | {len(asked)} | {' | '.join(cells)} | {pace:.1f} |", flush=True)


@dataclass(frozen=True)
class Content:
    """A text put into a memory ("core", "semantic" or "episodic"), whether it fits there, and what
    it is an example of."""

    memory: str
    content: str
    fits: bool
    why: str

    @property
    def call(self) -> Call:
        name, key = (UPDATE, "new_content") if self.memory == "core" else (INSERT, "content")
        return Call(name, {"memory_type": self.memory, key: self.content})


def load_contents(path: Path = CONTENTS) -> list[Content]:
    return [Content(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def judge(name: str, decide: ContentJudge, contents: Sequence[Content], show: int) -> None:
    """One line for a judge: agreement with the labels, and the two kinds of error."""
    begin = time.perf_counter()
    verdicts = decide([content.call for content in contents])
    seconds = (time.perf_counter() - begin) / len(contents)
    fits = np.array([content.fits for content in contents])
    failed = np.array([verdict.failed for verdict in verdicts])
    valid = np.array([verdict.valid for verdict in verdicts])
    right = (valid == fits) & ~failed
    wrong = [content for content, good in zip(contents, right, strict=True) if not good]
    for content in wrong[:show]:
        print(f"  {content}")
    mean = estimate([right.astype(float)])
    kinds = [
        np.mean(right[[content.memory == memory for content in contents]])
        for memory in ("core", "semantic", "episodic")
    ]
    print(
        f"| {name} | {mean.mean:.2f} ({mean.low:.2f} to {mean.high:.2f}) |"
        f" {' | '.join(f'{share:.2f}' for share in kinds)} |"
        f" {np.sum(valid & ~fits & ~failed)} of {np.sum(~fits)} |"
        f" {np.sum(~valid & fits & ~failed)} of {np.sum(fits)} | {failed.sum()} | {seconds:.1f} |",
        flush=True,
    )


def write(engine: FlaxModel, env: Environment, instance: Instance, options) -> None:
    """One line for an instance: what the model writes of its first chunks."""
    writer, begin = lm_writer(env, engine), time.perf_counter()
    (episode,) = run_episodes(env, [instance], writer)
    seconds = (time.perf_counter() - begin) / len(instance.chunks)
    (stored,) = run_baseline(env, [instance], store_everything.recall)
    calls = [call for step in episode.steps for call in step.calls]
    outcomes = [outcome.name for step in episode.steps for outcome in step.outcomes]
    for step in episode.steps[: options.show]:
        print(f"  chunk: {instance.chunks[step.chunk]!r}\n  response: {step.text}")
        print(f"  {[(call.name, call.error) for call in step.calls]}")
    r2 = np.mean([step.r2 for step in episode.steps])
    counts = ", ".join(f"{outcomes.count(name)} {name}" for name in sorted(set(outcomes)))
    print(
        f"| {instance.source} | {len(instance.chunks)} | {r2:.2f} | {len(instance.questions)} |"
        f" {episode.r1:.2f} | {stored.r1:.2f} | {len(calls)} ({counts}) | {seconds:.1f} |",
        flush=True,
    )


def short_instances(env: Environment, options) -> list[Instance]:
    """The first chunks of a synthetic stream of facts and of each built source, with the questions
    that they answer: for labels, those of sentences with a label that occurs in them."""
    instances = synthetic.generate_many(["facts"], "test", 1, chunks=options.chunks)
    for source in options.sources.split(",") if options.data else []:
        instances.append(built_sets.Built(options.data / source / options.split)[0])
    return [shorten(env, instance, options.chunks) for instance in instances]


def shorten(env: Environment, instance: Instance, chunks: int) -> Instance:
    count = lambda text: len(env.prompt.tokenizer.encode(text))
    parts = [part for chunk in instance.chunks for part in split_text(chunk, CHUNK_TOKENS, count)]
    text = "\n".join(parts[:chunks]) + "\n"
    form = "Label: {}\n" if category(instance.source) == "labels" else "{}"
    asked = [q for q in instance.questions if any(form.format(a) in text for a in q.answers)]
    return replace(instance, chunks=tuple(parts[:chunks]), questions=tuple(asked[:20]))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="name, GGUF file, folder or hub id")
    parser.add_argument("--role", choices=list(TOKENS), default="reader")
    parser.add_argument("--data", type=Path, help="what `python -m memalpha.data build` made")
    parser.add_argument("--sources", default="nlu,trec_coarse,squad", help="of --data")
    parser.add_argument("--split", default="test", help="of --data")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--chunks", type=int, default=4, help="for the writer")
    parser.add_argument("--tokens", type=int, default=0, help=f"of a reply; 0: {TOKENS}")
    parser.add_argument("--top_k", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--show", type=int, default=0)
    options = parser.parse_args()
    options.tokens = options.tokens or TOKENS[options.role]
    return options


def main() -> None:
    options = parse_options()
    engine = FlaxModel.load(options.model, options.dtype)
    env = prompted_environment(engine.tokenizer).replace(
        top_k=options.top_k, answer_judge=recall_judge
    )
    print(f"{engine.name}, top k {options.top_k}, {options.tokens} tokens a reply")
    if options.role == "writer":
        env = env.replace(response_tokens=options.tokens)
        print("| source | chunks | r2 | questions | r1 | r1 of store everything | calls |"
              " seconds a chunk |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
        for instance in short_instances(env, options):
            write(engine, env, instance, options)
    elif options.role == "judge":
        print("| judge | agreement | core | semantic | episodic | false accepts | false rejects |"
              " no verdict | seconds |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
        judge("rules", judge_contents, load_contents(), options.show)
        model = lm_content_judge(engine, max_new_tokens=options.tokens)
        judge("model", model, load_contents(), options.show)
    else:
        print("| source | questions | rules | model | seconds a question |\n|---|---|---|---|---|")
        for source in options.sources.split(","):
            read(engine, env, options.data / source / options.split, options)


if __name__ == "__main__":
    main()
