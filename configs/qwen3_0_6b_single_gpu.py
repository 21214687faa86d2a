"""Qwen3-0.6B on one GPU of 80 GB: the settings of configs/qwen3_4b.py at a size to try things with.

    python run_experiment.py --config=configs/qwen3_0_6b_single_gpu.py --config.data.dir=DIR \\
        --workdir=runs/qwen3_0_6b
    python -m experiments.plan --config=configs/qwen3_0_6b_single_gpu.py     (what it needs)

Batches of 4 instances x 8 rollouts, prompts of up to 3,072 tokens and responses of up to 1,024.
Everything else is as in that config, including DIR, the download and the arguments (beta, gamma,
released, lora, smoke, ppo, field=value).

According to the plan it needs 44 GB: 9.5 GB for parameters, reference policy and optimiser, plus
34 GB while sampling (15 GB for the cache of 32 rows) or 16 GB for a gradient; micro-batches of up
to 8 rows fit.

UNTRIED on a GPU, and its scores are unknown: the paper has no model of this size.
"""

from ml_collections import config_dict

from configs.common import finish
from configs.qwen3_4b import PRESETS, base, with_weights


def get_config(arg: str = "") -> config_dict.ConfigDict:
    config = base()
    config.title = "Qwen3-0.6B on one GPU"
    config.model.update(path="Qwen/Qwen3-0.6B", hidden_size=1024, num_layers=28, num_heads=16)
    config.model.update(num_kv_heads=8, head_dim=128, mlp_size=3072)
    config.data.update(chunks=8, chunk_tokens=350)
    config.prompt.update(tokens=3072, response_tokens=1024)
    config.rl.update(instances=4, micro_batch=2)
    return finish(config, with_weights(arg), PRESETS)
