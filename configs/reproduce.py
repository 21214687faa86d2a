"""Settings of a small reproduction of the paper's tables: `python -m experiments.reproduce`.

All systems are read as here: BM25, ten entries of each list, the reader of the command line. The
window of the systems that a prompted model writes (`prompt.tokens`, `prompt.response_tokens`) and
the sizes of their memories stand here too; a trained writer brings its own.

Arguments, after a colon and separated by commas:

    field=value   any field of the config, e.g. configs/reproduce.py:reward.top_k=20
"""

import os

from ml_collections import config_dict

from configs import tiny
from configs.common import finish, language_model


def get_config(arg: str = "") -> config_dict.ConfigDict:
    config = tiny.get_config()
    config.unlock()
    config.title = "small reproduction of the tables"
    config.data.update(dir=os.environ.get("MEMALPHA_DATA_DIR", "data"), max_questions=20)
    # Counts the tokens of all systems, unless a model in this process reads: then its own does.
    config.tokenizer.path = "smollm2"
    config.prompt.update(template="full", recent=5, tokens=3072, response_tokens=256)
    config.memory.update(core_tokens=512, entry_tokens=512, max_calls=64, first_ids=(1, 1))
    # The paper shows its reader 20 entries; a small model has room for half of them.
    config.reward.update(beta=0.05, gamma=0.1, retriever="bm25", top_k=10)
    # Writes for memagent, mem1, memgpt, mem0 and prompted; offline: the reader does.
    config.writer = language_model()
    config.eval.temperature = 0.0
    config.max_failed_share = 0.2
    return finish(config, arg, {})
