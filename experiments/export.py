"""Export the trained writer of a run, or a GGUF file, for `transformers` and serving engines.

    python -m experiments.export --workdir=runs/tiny --out=writer
    python -m experiments.export --workdir=model.Q4_K_M.gguf --out=model --dtype=bfloat16
    python -m experiments.export --workdir=runs/smollm2 --out=adapters --adapters

Writes a folder with config.json, safetensors and the tokenizer. Adapters are merged into the model,
and a critic is left out. With --adapters a folder of a few megabytes holds the adapters alone, for
`peft` and for `load_policy`, which bring the base model.
"""

from dataclasses import replace
from pathlib import Path

from absl import app, flags

from experiments.lib.command import command
from experiments.lib.progress import console
from memalpha import adapters
from memalpha.paths import user_path
from memalpha.policy import CHECKPOINTS, load_policy, read_spec, restore_trained
from memalpha.weights import export

WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of a run with a checkpoint, or a GGUF file.", required=True
)
OUT = flags.DEFINE_string("out", None, "Folder to write; must not be there yet.", required=True)
ADAPTERS = flags.DEFINE_bool("adapters", False, "The adapters alone, in float16.")
STAGE = flags.DEFINE_string("stage", None, "warm_start: the writer before reinforcement learning.")
DTYPE = flags.DEFINE_string("dtype", None, "Of the weights, such as bfloat16; none: as trained.")


def main(argv: list[str]) -> None:
    with command(argv):
        if ADAPTERS.value:
            console.print(f"written {export_adapters(WORKDIR.value, OUT.value, STAGE.value)}")
            return
        policy = load_policy(WORKDIR.value, STAGE.value)
        prompt = policy.env.prompt
        done = export(
            policy.params,
            policy.model,
            OUT.value,
            prompt.tokenizer,
            DTYPE.value,
            stops=prompt.stops,
        )
    console.print(f"written {done}")


def export_adapters(workdir: str, out: str, stage: str | None) -> Path:
    """Writes the adapters that a run trained; see `adapters.write`.

    Raises ValueError for a folder that is no workdir, or a run without adapters or checkpoint.
    """
    folder = user_path(workdir)
    spec = read_spec(folder)
    if spec is None or not spec.lora.rank or not (folder / CHECKPOINTS).is_dir():
        raise ValueError(f"{workdir} is no workdir of a run that trained adapters")
    spec = replace(spec, stage=stage or spec.stage)
    if user_path(spec.base).exists():
        console.print(
            f"the base model is {spec.base} on this machine: for others, set base and tokenizer in"
            " policy.json to a hub id or a name of memalpha.models"
        )
    base, trained, _ = restore_trained(folder, spec, spec.stage)
    return adapters.write(out, trained, base, spec)


if __name__ == "__main__":
    app.run(main)
