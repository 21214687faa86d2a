"""Export the trained writer of a run, or a GGUF file, for `transformers` and serving engines.

    python -m experiments.export --workdir=runs/tiny --out=writer
    python -m experiments.export --workdir=model.Q4_K_M.gguf --out=model --dtype=bfloat16

Writes a folder with config.json, safetensors and the tokenizer. Adapters are merged into the model,
and a critic is left out.
"""

from absl import app, flags

from experiments.lib.command import command
from experiments.lib.progress import console
from memalpha.policy import load_policy
from memalpha.weights import export

WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of a run with a checkpoint, or a GGUF file.", required=True
)
OUT = flags.DEFINE_string("out", None, "Folder to write; must not be there yet.", required=True)
DTYPE = flags.DEFINE_string("dtype", None, "Of the weights, such as bfloat16; none: as trained.")


def main(argv: list[str]) -> None:
    with command(argv):
        policy = load_policy(WORKDIR.value)
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


if __name__ == "__main__":
    app.run(main)
