"""How many planted wrong answers does the answer judge accept?

    python -m experiments.judge_check --workdir=runs/tiny --data=BUILT \\
        --sources=longmemeval_s,locomo --out=results/real
    python -m experiments.judge_check --workdir=runs/tiny --data=BUILT --sources=longmemeval_s \\
        --set=judge.engine=flax,judge.model=smollm2 --out=results/real

Wrong answers are made by rule from the gold answers of the sources (`memalpha.planted`), and shown
to the judge of the run's config beside the gold answers themselves. The counts are written to
judge.json in the results folder, where `experiments.tables` finds them: it makes no judged table
without them, and says "judge not fit" above 5 % of all, or of a kind.
"""

from absl import app, flags

from experiments.evaluate import define_run_flags, open_run
from experiments.lib import sources as measured
from experiments.lib.command import command
from experiments.lib.judged import check_table, claims_of, write_checks
from experiments.lib.progress import console
from experiments.lib.readers import describe_usage
from experiments.lib.render import markdown
from experiments.lib.systems import describe_reading
from memalpha.planted import check_judge


def main(argv: list[str]) -> None:
    args = flags.FLAGS
    with command(argv):
        run = open_run(args)
        instances, _ = measured.from_flags(run.config)
        judge = run.env.reading.answer_judge
        checks = {
            source: check_judge(judge, claims_of(of_source, args.questions))
            for source, of_source in instances.items()
        }
        name = describe_reading(run.env)["judge"]
        path = write_checks(args.out, name, checks)
    print(markdown([check_table(name, checks)]))
    for line in describe_usage(run.engines):
        console.print(line)
    console.print(f"counts {path}")


def define_flags() -> None:
    measured.define_flags()
    define_run_flags()
    flags.DEFINE_integer("questions", 200, "At most so many of each source.", lower_bound=1)
    flags.DEFINE_string("out", None, "Folder of results.", required=True)


if __name__ == "__main__":
    define_flags()
    app.run(main)
