"""The same experiment on real text: SQuAD passages, TREC questions and NLU requests.

    python run_experiment.py --config=configs/real_text.py --config.data.dir=DIR \\
        --workdir=runs/real_text

DIR holds the published files: squad/train*.json and squad/dev*.json, trec/train_5500.label and
trec/TREC_10.label, nlu/*.csv. Without the flag it is the environment variable MEMALPHA_DATA_DIR, or
else the folder `data`. All else is as in configs/tiny.py: policy and tokenizer from scratch. About
half an hour on 2 CPU cores. Real text has no notes that say what is worth storing, so in the warm
start every sentence is a possible note, and the table has no perfect writer.

Arguments, after a colon and separated by commas:

    smoke     the same in about two minutes, at lower quality
    flat      the memory is only the core: everything has to fit one paragraph
    ppo       PPO with a critic in place of GRPO
    field=value   any field of the config, e.g. configs/real_text.py:data.dir=DIR,seed=1
"""

import os

from ml_collections import config_dict

from configs import tiny
from configs.common import finish, ppo, smoke


def get_config(arg: str = "") -> config_dict.ConfigDict:
    config = tiny.get_config()
    config.title = "real text: SQuAD, TREC and NLU, policy from scratch"
    config.data.update(
        sources=("squad", "trec_coarse", "nlu"),
        dir=os.environ.get("MEMALPHA_DATA_DIR", "data"),
        # Counted in words (and bytes outside of ASCII) instead of tokens, because the tokenizer is
        # trained on these instances. Includes the 12 or 13 words around the content. About 1.4
        # tokens per word.
        chunk_tokens=72,
        max_questions=6,
        instances=400,  # of each source, repeated in epochs
    )
    config.tokenizer.vocab_size = 4096
    # A response holds a sentence or two of SQuAD, or six requests of NLU.
    config.prompt.update(recent=2, tokens=256, response_tokens=96)
    config.memory.update(core_tokens=48, entry_tokens=96)
    # A line of SQuAD is a whole passage, so there are no useless lines (keep_filler) to store.
    config.warm_start.update(keep_filler=0.0, steps=700)
    # The settings of the table in docs/results.md; a step takes about twice as long as in tiny.
    config.rl.update(steps=150, instances=6, schedule="stable_decay")
    config.rl.update(optimizer="adamw", learning_rate=6e-4)
    config.reward.gamma = 0.1
    config.eval.update(every=25, instances=8)
    return finish(config, arg, {"smoke": smoke, "flat": flat, "ppo": ppo})


def flat(config: config_dict.ConfigDict) -> None:
    """Preset: one paragraph of at most 512 tokens is all the memory there is."""
    tiny.flat(config)
    config.prompt.tokens, config.prompt.response_tokens = 416, 224
