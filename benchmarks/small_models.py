"""What a pretrained chat model does as reader and as prompted writer.

    python -m memalpha.data build --source=squad,nlu,trec_coarse --raw_dir=DIR --out=OUT --split=test --shrink
    python -m benchmarks.small_models --role=reader --model=smollm2 --data=OUT --questions=20
    python -m benchmarks.small_models --role=writer --model=model.gguf --data=OUT --chunks=4

reader: questions on the evidence that `store_everything` finds, answered by the model and by the
offline rules; a mean with its interval over questions, and seconds a question.
writer: chunks of the synthetic streams and of SQuAD, written by the model; r2 is the share of calls
that were carried out, r1 the score of the offline rules on the memory.

`--show=N` prints the first N prompts' replies as they stand.
"""  # noqa: E501

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from experiments.lib.intervals import estimate
from memalpha.baselines import store_everything
from memalpha.data import built_sets, synthetic
from memalpha.data.cut import split_text
from memalpha.data.instance import Instance
from memalpha.episode import Environment
from memalpha.lm.local import FlaxModel
from memalpha.lm.roles import lm_reader, lm_writer, prompted_environment
from memalpha.reading import run_baseline
from memalpha.rollout import run_episodes
from memalpha.scoring import recall_judge

CHUNK_TOKENS = 200  # of a chunk of real text that is written


def read(engine: FlaxModel, env: Environment, folder: Path, options) -> None:
    """One line for a source: model and rules on the same evidence."""
    instance = built_sets.Built(folder)[0]
    instance = replace(instance, questions=instance.questions[: options.questions])
    scores, seconds = {}, 0.0
    for name in ("rules", "model"):
        if name == "model":
            env = env.replace(answerer=lm_reader(engine, max_new_tokens=options.tokens))
        begin = time.perf_counter()
        (episode,) = run_baseline(env, [instance], store_everything.recall)
        seconds = time.perf_counter() - begin
        scores[name] = estimate([episode.scores])
    for question, answer, score in list(
        zip(instance.questions, episode.answers, episode.scores, strict=True)
    )[: options.show]:
        print(f"  {score:.2f} {answer.text!r} for {question.answers}")
    cells = [f"{e.mean:.2f} ({e.low:.2f} to {e.high:.2f})" for e in scores.values()]
    pace = seconds / len(instance.questions)
    print(
        f"| {folder.parent.name} | {len(instance.questions)} | {' | '.join(cells)} | {pace:.1f} |"
    )


def write(engine: FlaxModel, env: Environment, instance: Instance, options) -> None:
    """One line for an instance: what the model writes of its first chunks."""
    writer, begin = lm_writer(env, engine), time.perf_counter()
    (episode,) = run_episodes(env, [instance], writer)
    seconds = (time.perf_counter() - begin) / len(instance.chunks)
    calls = [call for step in episode.steps for call in step.calls]
    outcomes = [outcome.name for step in episode.steps for outcome in step.outcomes]
    for step in episode.steps[: options.show]:
        print(f"  chunk: {instance.chunks[step.chunk]!r}\n  response: {step.text}")
        print(f"  {[(call.name, call.error) for call in step.calls]}")
    r2 = np.mean([step.r2 for step in episode.steps])
    counts = ", ".join(f"{outcomes.count(name)} {name}" for name in sorted(set(outcomes)))
    print(
        f"| {instance.source} | {len(instance.chunks)} | {r2:.2f} | {episode.r1:.2f} |"
        f" {len(calls)} ({counts}) | {seconds:.1f} |",
        flush=True,
    )


def short_instances(env: Environment, data: Path | None, chunks: int) -> list[Instance]:
    """The first chunks of a synthetic stream of facts and of SQuAD, with the questions that they
    answer."""
    instances = synthetic.generate_many(["facts"], "test", 1)
    if data is not None:
        instances.append(built_sets.Built(data / "squad" / "test")[0])
    short = []
    for instance in instances:
        count = lambda text: len(env.prompt.tokenizer.encode(text))
        parts = [
            part for chunk in instance.chunks for part in split_text(chunk, CHUNK_TOKENS, count)
        ]
        parts = parts[:chunks]
        text = "\n".join(parts)
        asked = [q for q in instance.questions if any(a in text for a in q.answers)]
        short.append(replace(instance, chunks=tuple(parts), questions=tuple(asked[:20])))
    return short


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="name, GGUF file, folder or hub id")
    parser.add_argument("--role", choices=("reader", "writer"), default="reader")
    parser.add_argument("--data", type=Path, help="what `python -m memalpha.data build` made")
    parser.add_argument("--sources", default="nlu,trec_coarse,squad", help="for the reader")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--chunks", type=int, default=4, help="for the writer")
    parser.add_argument("--tokens", type=int, default=0, help="of a reply; 0: 32, a writer 256")
    parser.add_argument("--top_k", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--show", type=int, default=0)
    options = parser.parse_args()
    options.tokens = options.tokens or (32 if options.role == "reader" else 256)
    engine = FlaxModel.load(options.model, options.dtype)
    env = prompted_environment(engine.tokenizer).replace(
        top_k=options.top_k, answer_judge=recall_judge
    )
    print(f"{engine.name}, top k {options.top_k}, {options.tokens} tokens a reply")
    if options.role == "writer":
        env = env.replace(response_tokens=options.tokens)
        print("| source | chunks | r2 | r1 | calls | seconds a chunk |\n|---|---|---|---|---|---|")
        for instance in short_instances(env, options.data, options.chunks):
            write(engine, env, instance, options)
        return
    print("| source | questions | rules | model | seconds a question |\n|---|---|---|---|---|")
    for source in options.sources.split(","):
        read(engine, env, options.data / source / "test", options)


if __name__ == "__main__":
    main()
