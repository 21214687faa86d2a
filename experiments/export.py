"""The trained writer of a run as a folder that `transformers` and serving engines can load.

    python -m experiments.export --workdir=runs/tiny --out=writer

Writes config.json, safetensors and the tokenizer; adapters are merged and a critic is left out.
"""

import json
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict

from experiments.progress import console
from experiments.setup import build_tokenizer
from experiments.train import load_policy
from memalpha.weights import export

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run with a checkpoint.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder to write; must not be there yet.", required=True)
DTYPE = flags.DEFINE_string("dtype", None, "Of the weights, such as bfloat16; none: as trained.")


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax tells much of every checkpoint
    workdir = Path(WORKDIR.value)
    config = ConfigDict(json.loads((workdir / "config.json").read_text()))
    tokenizer = build_tokenizer(config, workdir)
    model, params = load_policy(config, workdir, len(tokenizer))
    console.print(f"written {export(params, model, OUT.value, tokenizer, DTYPE.value)}")


if __name__ == "__main__":
    app.run(main)
