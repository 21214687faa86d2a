"""A small reproduction of the paper's tables, in one command.

    python -m experiments.reproduce --out=results/small
    python -m experiments.reproduce --out=results/small --reader=smollm2 --sizes=2k,8k
    python -m experiments.reproduce --out=results/qwen --url=http://127.0.0.1:8000/v1 \\
        --model=Qwen/Qwen3-32B --checkpoints=memalpha-smollm2,runs/tiny --instances=10
    python -m experiments.reproduce --full --hardware="H100 80 GB"

Builds streams of a few lengths from the published files at hand (--raw_dir), runs every system on
them with the reader that is named, checks the judge, and writes tables 1 to 4 and 6 to 9 with
pictures, shortest streams first. Without a model as reader, offline rules read, and the systems
that a model writes are left out. The same command continues after a stop. --list says what would
be run, and --full what the paper's own sizes would cost; both end there.
"""

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

import jax
from absl import app, flags
from ml_collections import ConfigDict

from configs.common import finish
from configs.reproduce import get_config
from experiments import tables
from experiments.evaluate import Work, describe, list_work, measure, name_checkpoints
from experiments.lib.command import command
from experiments.lib.data_tables import data_tables
from experiments.lib.judged import claims_of, is_judged, read_checks, write_checks
from experiments.lib.kinds import kind_tables
from experiments.lib.planned import SYSTEMS, Part, Plan, describe_rows, full_bill
from experiments.lib.pool import read_pool
from experiments.lib.progress import console
from experiments.lib.readers import check_readers, context_tokens, describe_usage
from experiments.lib.render import markdown
from experiments.lib.results import ABOUT, Results, read_results
from experiments.lib.sources import describe_source, load_sources
from experiments.lib.streams import (
    SOURCES_OF,
    Asked,
    build_streams,
    read_size,
    size_name,
)
from experiments.lib.systems import (
    BESIDE,
    Run,
    describe_reading,
    is_prompted,
    open_config,
    open_systems,
)
from experiments.lib.workdir import differences
from memalpha.agent.writers import REPLY_TOKENS
from memalpha.data import built_sets
from memalpha.paths import user_path
from memalpha.planted import check_judge

DRAFTS = 3  # tokens copied from the chat that a pass checks
JUDGED = 200  # questions of a source that the judge check plants answers for, at most


def settings(args: flags.FlagValues) -> ConfigDict:
    """The config of the evaluation. ValueError for a reader that cannot be or has no room."""
    if bool(args.url) != bool(args.model) or (args.url and args.reader):
        raise ValueError("give --reader=MODEL, or --url=ADDRESS with --model=NAME, or none of them")
    config = get_config()
    config.data.update(dir=args.raw_dir, max_questions=args.questions)
    if args.url:
        config.reader.update(engine="server", url=args.url, model=args.model)
    for role, model in (("reader", args.reader), ("writer", args.writer)):
        if model:
            config[role].update(engine="flax", model=model, max_new_tokens=REPLY_TOKENS)
            on_cpu = jax.default_backend() == "cpu"  # where drafts pay at any number of rows
            config[role].update(
                dtype="float32" if on_cpu else "bfloat16", draft_tokens=DRAFTS if on_cpu else 0
            )
    config.reader.one_line = bool(args.reader)  # small models go on after their answer
    config.tokenizer.path = args.reader or config.tokenizer.path
    config = finish(config, args.set, {})
    check_readers(config)
    return config


def check_room(config: ConfigDict, plan: Plan, chunk_tokens: int) -> None:
    """ValueError where the context of a model in this process is too small."""
    name, shown = max(plan.shown(chunk_tokens).items(), key=lambda item: item[1], default=("", 0))
    reply = config.reader.max_new_tokens + BESIDE
    needs = {"reader": (int(shown) + reply, f"what {name} shows, instructions and reply")}
    if any(map(is_prompted, plan.names)):
        prompt = config.prompt.tokens + config.prompt.response_tokens
        needs["writer"] = (prompt, "prompt and reply")
    for role, (need, what) in needs.items():
        model = config[role] if config[role].engine != "offline" else config.reader
        if model.engine != "flax":
            continue
        context = context_tokens(model)
        if context < need:
            raise ValueError(
                f"{model.model} as {role}: its context of {context} tokens has no room for {what}"
                f" ({need}); lower --chunk_tokens, or --set=reward.top_k or prompt.tokens, or take"
                " another model"
            )


def load_parts(config: ConfigDict, args: flags.FlagValues, sizes: Sequence[int]) -> list[Part]:
    """What was built, shortest first."""
    parts = []
    for size in map(size_name, sizes):
        folder = user_path(args.out) / "data" / size
        sets = built_sets.list_sets(folder) if folder.is_dir() else {}
        here = ConfigDict(config)
        here.data.built = str(folder)
        for split, names in SOURCES_OF.items():
            names = [n for n in names if n in sets.get(split, {}) and n in (args.sources or names)]
            about = {name: describe_source(here, name, split, 0) for name in names}
            loaded = load_sources(here, names, split, args.instances) if names else {}
            parts += [Part(size, split, loaded, about)] if names else []
    return parts


def reproduce(args: flags.FlagValues) -> None:
    """Builds streams, says what will be run, and without --list runs it and writes the tables."""
    out = _claim(args.out)
    config, sizes = settings(args), sorted({*map(read_size, args.sizes)})
    checkpoints = name_checkpoints(args.checkpoints) | ({"flat": args.flat} if args.flat else {})
    plan = Plan(config, args.systems, checkpoints, args.slow_instances)
    if not (plan.names or checkpoints):
        raise ValueError(
            f"{', '.join(plan.left_out)}: give --reader, --url or --writer, their model"
        )
    check_room(config, plan, args.chunk_tokens)
    asked = Asked(args.instances, args.questions, args.chunk_tokens, config.seed)
    left_out = build_streams(args.raw_dir, out / "data", sizes, asked, args.sources)
    parts = load_parts(config, args, sizes)
    if not parts:
        raise ValueError(
            f"no stream can be built from --raw_dir={args.raw_dir}: `python -m memalpha.data"
            " download` fetches what is public, docs/data.md says where the files go"
            f" ({'; '.join(f'{name}: {why}' for name, why in left_out.items())})"
        )
    print(markdown(plan.tables(parts)))
    for name, why in left_out.items():
        console.print(f"left out: {name}: {why}", markup=False)
    if args.list:
        return
    run = open_config(config)
    check_same_reading(out, run)
    systems = open_systems(plan.names, run, None, args.batch, checkpoints=checkpoints)
    told = [f"Streams left out: {'; '.join(left_out)}."] if left_out else []
    with ExitStack() as stack:
        work: list[Work] = []
        for part in parts:
            folder = out / part.size / part.split
            about = describe(run, part.split, systems, part.about)
            results = stack.enter_context(Results(folder, about))
            check_judges(run, part, folder)
            for name in sorted(systems, key=plan.is_slow):
                chosen = {source: plan.choose(name, of) for source, of in part.sources.items()}
                slow, one = plan.is_slow(name), {name: systems[name]}
                work += list_work(one, chosen, results, args.batch, plan.effort, mixed=slow)
        last = {one.results.folder.parent.name: one for one in work}  # of each size

        def after(one: Work) -> None:
            size = one.results.folder.parent.name
            if one is last[size] and size != parts[-1].size:
                write_tables(out, told)

        measure(config, work, "thousand tokens", after)
        written = write_tables(out, told)
    for line in (*describe_usage(run.engines), *map(str, written)):
        console.print(line, markup=False)


def _claim(folder: str) -> Path:
    """The folder, created; ValueError where nothing can be written there."""
    path = user_path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(f"--out={folder} cannot be written: {error}; give another") from None
    return path


def check_judges(run: Run, part: Part, folder: Path) -> None:
    """Counts the wrong answers that the judge accepts, where it scores sources of the part."""
    name, judge = describe_reading(run.env)["judge"], run.env.reading.answer_judge
    judged = {source for source in part.sources if is_judged(source)}
    missing = judged - read_checks([folder], name).keys()
    checks = {s: check_judge(judge, claims_of(part.sources[s], JUDGED)) for s in sorted(missing)}
    if checks:
        write_checks(folder, name, checks)


def check_same_reading(out: Path, run: Run) -> None:
    """ValueError where rows of other sizes, which the tables and pictures show too, were read in
    another way."""
    now = describe_reading(run.env)
    for folder in (folder for of_size in list_folders(out).values() for folder in of_size):
        if differ := differences(read_results(folder)[0]["reading"], now):
            lines = "; ".join(f"reading.{n}: was {old}, is {new}" for n, old, new in differ)
            raise ValueError(f"{folder} has rows of other settings ({lines}): give another --out")


def list_folders(out: Path) -> dict[str, list[str]]:
    """Size -> its folders with rows of this or earlier commands, shortest first."""
    folders: dict[str, list[str]] = {}
    names = [path.name for path in (out / "data").iterdir()]
    for size in sorted(read_size(name) for name in names if re.fullmatch(r"\d+k?", name)):
        places = [out / size_name(size) / split for split in SOURCES_OF]
        if of_size := [str(p) for p in places if (p / ABOUT).exists() and read_results(p)[1]]:
            folders[size_name(size)] = of_size
    return folders


def write_tables(out: Path, told: Sequence[str]) -> list[Path]:
    """The tables of all sizes that have rows, those of our streams first, with pictures of the
    longest."""
    folders, ours, papers = list_folders(out), [], []
    sizes = list(folders)
    for size, of_size in folders.items():
        pool = read_pool(of_size, small=of_size)
        notes = (*describe_rows(pool), *told)
        data = data_tables(str(out / "data" / size))[size != sizes[0] :]  # table 6 once
        for all_of, made in (
            (ours, [*tables.small_tables(pool), *kind_tables(pool, tables.LABELS)]),
            (papers, [*tables.paper_tables(pool), *data]),
        ):
            ending = f"; streams of about {size} tokens"
            all_of += [replace(t, title=t.title + ending, notes=(*t.notes, *notes)) for t in made]
    others = [folder for size in sizes[:-1] for folder in folders[size]]
    return tables.save(out, [*ours, *papers], tables.pictures(pool, others))


def main(argv: list[str]) -> None:
    args = flags.FLAGS
    with command(argv, args.debug):
        if args.full:
            print(markdown([full_bill(args.hardware)]))
        elif not args.out:
            raise ValueError("give --out=FOLDER")
        else:
            reproduce(args)


def define_flags() -> None:
    folder = os.environ.get("MEMALPHA_DATA_DIR", "data")
    flags.DEFINE_string("out", "", "Folder of data, rows, tables.md, tables.tex and tables.html.")
    flags.DEFINE_string("raw_dir", folder, "The published files, a folder a source.")
    flags.DEFINE_list("sizes", ["2k", "8k", "32k"], "Lengths of the streams in tokens.")
    flags.DEFINE_list("sources", [], "Names; default: all whose files are there.")
    flags.DEFINE_list("systems", [], f"Of {', '.join(SYSTEMS)}. Default: all.")
    flags.DEFINE_list("checkpoints", ["memalpha-smollm2"], "Trained writers: [NAME=]CHECKPOINT.")
    flags.DEFINE_string("flat", "", "Workdir of a writer with a flat memory.")
    flags.DEFINE_string("reader", "", "Model that reads, here: folder, GGUF file, hub id or name.")
    flags.DEFINE_string("url", "", "OpenAI-compatible server that reads.")
    flags.DEFINE_string("model", "", "Name of the model there.")
    flags.DEFINE_string("writer", "", "Model that writes where one is prompted; default: reader.")
    flags.DEFINE_integer("instances", 3, "Of each source, at most.", lower_bound=1)
    flags.DEFINE_integer("slow_instances", 1, "For systems that a model writes.", lower_bound=1)
    flags.DEFINE_integer("questions", 20, "Of an instance, at most.", lower_bound=1)
    flags.DEFINE_integer("chunk_tokens", 512, "Of a chunk, at most.", lower_bound=32)
    flags.DEFINE_integer("batch", 4, "Instances at once.", lower_bound=1)
    flags.DEFINE_string("set", "", "Changes to configs/reproduce.py: field=value,...")
    flags.DEFINE_bool("list", False, "Say what would be run, and stop.")
    flags.DEFINE_bool("full", False, "Say what the paper's sizes cost, and stop.")
    flags.DEFINE_string("hardware", "H200 141 GB", "Of --full.")
    flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
