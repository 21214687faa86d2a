"""Questions a minute of a pretrained reader: ours, and the same file behind llama.cpp's server.

    python -m memalpha.data build --source=squad --raw_dir=DIR --out=OUT --split=test --shrink
    pip install "llama-cpp-python[server]"  # in an environment of its own
    python -m llama_cpp.server --model FILE.gguf --n_threads 2 --n_threads_batch 2 --n_ctx 4096
    python -m benchmarks.reading --data=OUT --model=FILE.gguf --url=http://127.0.0.1:8000/v1

Questions of SQuAD on the evidence that `store_everything` finds (top k 5, template "full"), greedy.
Every round has other questions, which no prompt cache has seen. The last table has the tokens of
prompts and replies, and the share of replies that contain an answer: whether both did the same.
"""

import json
from pathlib import Path
from statistics import mean

from benchmarks.timing import Contender, Timing, arguments, run, table, write
from memalpha import metrics
from memalpha.baselines import store_everything
from memalpha.data import built_sets
from memalpha.lm.interface import Counted, LanguageModel
from memalpha.lm.local import FlaxModel
from memalpha.lm.roles import lm_reader, prompted_environment
from memalpha.lm.server import ServerModel
from memalpha.tokenizer import load_tokenizer

SERVER = ("openai",)


def questions(settings: dict):
    """Requests and their accepted answers, one after the other over the instances."""
    env = prompted_environment(load_tokenizer(settings["model"])).replace(top_k=settings["top_k"])
    for instance in built_sets.Built(Path(settings["data"]) / "squad" / "test"):
        (found,) = store_everything.recall(env, [instance])
        answers = (question.answers for question in instance.questions)
        yield from zip(found.requests, answers, strict=True)


def read(engine: LanguageModel, settings: dict, rounds) -> None:
    """So many new questions every round."""
    counted = Counted(engine)
    answer = lm_reader(counted, max_new_tokens=settings["tokens"])
    waiting = questions(settings)
    rounds.prepare = lambda: [next(waiting) for _ in range(settings["questions"])]
    for asked in rounds:
        before = vars(counted.usage).copy()
        replies = answer([request for request, _ in asked])
        scores = [
            metrics.sub_em(reply, answers)
            for reply, (_, answers) in zip(replies, asked, strict=True)
        ]
        fields = ("prompt_tokens", "completion_tokens")
        rounds.note(score=mean(scores), **{f: vars(counted.usage)[f] - before[f] for f in fields})


def ours(settings: dict, rounds) -> None:
    read(FlaxModel.load(settings["model"], settings["dtype"]), settings, rounds)


def server(settings: dict, rounds) -> None:
    engine = ServerModel(settings["url"], "model", concurrency=1, timeout=600.0)
    read(engine, settings, rounds)


def work(timings: list[Timing]) -> str:
    """A Markdown table of what the contenders did."""
    lines = ["| | prompt tokens | reply tokens | replies with an answer |", "|---|---|---|---|"]
    for timing in timings:
        sums = [
            sum(note[f] for note in timing.notes) for f in ("prompt_tokens", "completion_tokens")
        ]
        score = mean(note["score"] for note in timing.notes) if timing.notes else 0.0
        lines.append(f"| {timing.name} | {sums[0]:,} | {sums[1]:,} | {score:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__, rounds=2)
    parser.set_defaults(warmup=1)
    parser.add_argument("--model", default="smollm2", help="name, GGUF file, folder or hub id")
    parser.add_argument("--data", required=True, help="what `python -m memalpha.data build` made")
    parser.add_argument("--url", help="of a server with the same model; default: ours alone")
    parser.add_argument("--questions", type=int, default=50, help="of a round")
    parser.add_argument("--tokens", type=int, default=32, help="of a reply, at most")
    parser.add_argument("--top_k", type=int, default=5)
    parser.add_argument("--dtype", default="float32", help="of ours")
    args = parser.parse_args()
    names = ("model", "data", "url", "questions", "tokens", "top_k", "dtype")
    given = {name: getattr(args, name) for name in names}
    contenders = [Contender("memalpha", "benchmarks.reading:ours")]
    if args.url:
        contenders.append(Contender("llama.cpp server", "benchmarks.reading:server", SERVER))
    timings = run(args, contenders, given)
    print(f"\n{json.dumps(given)}\n\n{table(timings, 60 * args.questions, 'questions/min')}\n")
    print(work(timings))
    write(args, "reading", given, {"reading": timings}, contenders)


if __name__ == "__main__":
    main()
