"""The memory timeline: episodes chunk by chunk, as one HTML file without external files.

    python -m experiments.timeline --workdir=runs/tiny
    python -m experiments.timeline --workdir=runs/tiny --compare=runs/other --chunks=20
    python -m experiments.timeline --workdir=runs/tiny --checkpoints=125,145 --out=two.html

Shows how the trained writer of the run reads test instances, side by side with the untrained writer
of the same run or the trained writer of another; or several checkpoints. Step with the arrow keys.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict

from experiments.lib import page
from experiments.lib.command import command
from experiments.lib.instances import build_every
from experiments.lib.objects import open_stage, open_trained
from experiments.lib.progress import console
from memalpha.agent.contents import difference, texts_of
from memalpha.data.files import write_text
from memalpha.episode import Environment, Episode, Step
from memalpha.memory import EMPTY_VIEW, MemoryView
from memalpha.paths import user_path
from memalpha.pieces import fit_all
from memalpha.policy import Policy, load_policy
from memalpha.rollout import run_episodes


def write_timeline(
    path: Path,
    title: str,
    envs: Mapping[str, Environment],
    runs: Mapping[str, Sequence[Episode]],
) -> Path:
    """Writes the page. `runs`: writer -> its episodes of the same instances in the same order, from
    `run_episodes` with keep_views=True. `envs`: writer -> its environment.

    Raises ValueError if runs have different instances or no views.
    """
    episodes = [_shared(envs, dict(zip(runs, each, strict=True))) for each in _aligned(runs)]
    body = page.fill_template("timeline.html", title=title)
    style, script = page.read("timeline.css"), page.read("timeline.js")
    data = {"episodes": episodes}
    return write_text(path, page.page(title, body, style, script, data))


def _aligned(runs: Mapping[str, Sequence[Episode]]) -> list[tuple[Episode, ...]]:
    if not runs or not all(runs.values()):
        raise ValueError("timeline: no episodes; give at least one of each run")
    if len(set(map(len, runs.values()))) > 1:
        raise ValueError(
            f"timeline: runs of {[len(v) for v in runs.values()]} episodes; give equal"
        )
    rows = list(zip(*runs.values(), strict=True))
    for row in rows:
        if any(episode.instance != row[0].instance for episode in row):
            raise ValueError("timeline: the runs read other instances; give the same to each")
    return rows


def _shared(envs: Mapping[str, Environment], runs: Mapping[str, Episode]) -> dict:
    """The data of one instance: its text and questions, and the run of each writer."""
    instance = next(iter(runs.values())).instance
    return {
        "name": f"{instance.source} {instance.instance_id}",
        "chunks": list(instance.chunks),
        "questions": [
            {"question": asked.question, "gold": list(asked.answers)}
            for asked in instance.questions
        ],
        "runs": [_run(envs[name], name, episode) for name, episode in runs.items()],
    }


def _run(env: Environment, name: str, episode: Episode) -> dict:
    before, steps = EMPTY_VIEW, []
    for step in episode.steps:
        if step.view is None:
            raise ValueError("timeline: an episode has no views; run it with keep_views=True")
        steps.append(_step(env, step, before))
        before = step.view
    return {
        "name": name,
        "r1": _finite(episode.r1),
        "r3": _finite(episode.r3),
        "memory_tokens": episode.memory_tokens,
        "chunk_tokens": episode.chunk_tokens,
        "steps": steps,
        "answers": _answers(episode),
    }


def _step(env: Environment, step: Step, before: MemoryView) -> dict:
    old = texts_of(before)
    changes = difference(before, step.view)
    return {
        "prompt": env.prompt.tokenizer.decode(step.response.prompt),
        "response": env.prompt.tokenizer.decode(step.response.tokens),
        "finished": step.response.finished,
        "calls": [
            {
                "text": f"{call.name} {json.dumps(call.arguments, ensure_ascii=False)}"
                + (f"\n{call.error}" if call.error else ""),
                "outcome": outcome.name.lower(),
                "fit": fit,
            }
            for call, outcome, fit in zip(step.calls, step.outcomes, step.fit, strict=True)
        ],
        "r2": step.r2,
        "r4": step.r4,
        "tokens": step.view.tokens,
        # (memory, id, text before, text after), ordered by id; the page replays these changes.
        "changes": [[*key, old.get(key), changes[key]] for key in sorted(changes)],
    }


def _answers(episode: Episode) -> list[dict]:
    of_id = {
        entry.id: (kind, entry)
        for kind, entries in enumerate((episode.view.semantic, episode.view.episodic), start=1)
        for entry in entries
    }
    answers = []
    for answer, score in zip(episode.answers, episode.scores, strict=True):
        retrieved = [
            [i, _finite(s), of_id[i][0], of_id[i][1].text, of_id[i][1].written_at]
            for i, s in zip(answer.ids, answer.scores, strict=True)
        ]
        fields = {"text": answer.text, "score": _finite(score), "tokens": answer.tokens}
        answers.append(fields | {"found": retrieved})
    return answers


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def show_policies(
    path: Path,
    config: ConfigDict,
    policies: Mapping[str, Policy],
    per_source: int = 1,
    chunks: int = 0,
) -> Path:
    """Writes the page with test instances of every source of `config`, read by each policy."""
    instances = build_every(config, "test", per_source, chunks=chunks)
    for policy in policies.values():  # all of them read the same pieces of a long chunk
        instances = fit_all(policy.env, instances)
    runs = {
        name: run_episodes(policy.env, instances, policy.writer(len(instances)), keep_views=True)
        for name, policy in policies.items()
    }
    envs = {name: policy.env for name, policy in policies.items()}
    return write_timeline(path, config.title, envs, runs)


def choose_policies(
    config: ConfigDict,
    folder: Path,
    trained: Policy,
    other: str | None = None,
    steps: Iterable[int] = (),
) -> dict[str, Policy]:
    """The policies to compare: checkpoints `steps` of the run, else the run and `other`, else the
    run before and after training. All use the reader and judges of `trained`.
    """
    env = trained.env
    if chosen := {f"step {n}": replace(load_policy(folder, step=n), env=env) for n in steps}:
        return chosen
    if other is None:
        before = open_stage(config, folder, "warm_start", env)
        return {"before training": before, "after training": trained}
    if user_path(other).resolve() == folder.resolve():
        raise app.UsageError("--compare is the folder of --workdir; --checkpoints compares within")
    names = [path.absolute().name for path in (folder, user_path(other))]
    names = names if names[0] != names[1] else [str(folder), other]
    beside = load_policy(other)
    roles = ("answerer", "content_judge", "answer_judge", "failures")
    same = {role: getattr(env.reading, role) for role in roles}
    beside = replace(beside, env=beside.env.replace(**same))
    return dict(zip(names, (trained, beside), strict=True))


def main(argv: list[str]) -> None:
    with command(argv):
        folder = user_path(WORKDIR.value)
        config, trained = open_trained(folder)
        steps = map(int, CHECKPOINTS.value or ())
        policies = choose_policies(config, folder, trained, COMPARE.value, steps)
        path = user_path(OUT.value or folder / "timeline.html")
        show_policies(path, config, policies, PER_SOURCE.value, CHUNKS.value)
        console.print(f"timeline {path}")


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
    COMPARE = flags.DEFINE_string("compare", None, "Folder of a run to show beside it.")
    CHECKPOINTS = flags.DEFINE_list("checkpoints", None, "Steps of the run, side by side.")
    PER_SOURCE = flags.DEFINE_integer("per_source", 1, "Instances of each source.")
    CHUNKS = flags.DEFINE_integer("chunks", 0, "Chunks of an instance; 0: as in training.")
    OUT = flags.DEFINE_string("out", None, "The file; default: timeline.html in the workdir.")
    app.run(main)
