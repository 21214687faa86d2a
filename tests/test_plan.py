"""The footprint on a pod: stored bytes against real arrays, and figures worked by hand."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from configs import qwen3_0_6b_single_gpu, qwen3_4b, tiny
from experiments.lib import needs, objects
from experiments.lib.checks import check
from experiments.lib.needs import build_setting, mesh_sizes
from memalpha import cost, footprint, learner, sharding
from memalpha.lora import LoraConfig
from memalpha.model import ModelConfig, init_params
from memalpha.objective import LossConfig
from memalpha.optimizer import OptimizerConfig, make_optimizer

MODEL = ModelConfig(
    vocab_size=40,
    hidden_size=8,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    mlp_size=16,
    param_dtype="bfloat16",
)
SETTING = footprint.Setting(
    model=MODEL,
    loss=LossConfig(kl="k3", kl_coef=0.1),
    lora=LoraConfig(),
    optimizer=make_optimizer(OptimizerConfig(1e-3)),
    mesh=(1, 1, 1),
    gather=True,
    prompt=7,
    response=5,
    rows=6,
    micro_batch=3,
    step_rows=12,
)


@pytest.fixture(scope="module")
def measured():
    return footprint.measure_footprint(SETTING)


@pytest.fixture(scope="module")
def params():
    """Arrays of MODEL; their values are of no matter here."""
    shapes = jax.eval_shape(partial(init_params, MODEL), jax.random.key(0))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def test_a_footprint_counts_what_is_stored_and_compiles_the_rest(measured, params):
    state = learner.init_state(params, SETTING.optimizer)
    sizes = [sum(x.nbytes for x in jax.tree.leaves(t)) for t in (params, state.opt_state)]
    names = ("parameters", "start and reference", "optimiser")
    assert [measured.persistent[name] for name in names] == [sizes[0], sizes[0], sizes[1]]
    assert measured.update["gradients, two sets"] == 2 * 2 * sizes[0]  # float32
    # 2 layers, keys and values, 6 rows, 12 slots, 2 heads of 6, float32
    assert measured.rollout["cache"] == 2 * 2 * 6 * 12 * 2 * 6 * 4
    assert measured.rollout["prefill and decode"] > 0
    # At least the logits of a row, 5 positions over 40 tokens.
    assert measured.row_bytes > 5 * 40 * 4
    rows = {name: size for name, size in measured.update.items() if name.startswith("activations")}
    assert rows == {"activations, 3 rows": 3 * measured.row_bytes}
    persistent, rollout, update = (
        sum(part.values()) for part in (measured.persistent, measured.rollout, measured.update)
    )
    assert measured.peak == persistent + max(rollout, update)


def test_a_loop_over_layers_needs_their_weights_and_gradients_once_more(params):
    layers = {name: x for name, x in params.items() if name.startswith("layers_")}
    size = sum(x.nbytes for x in jax.tree.leaves(layers))
    whole = footprint.abstract_params(MODEL, None)
    assert footprint.stacked_bytes(whole, whole) == 2 * size


def test_depth_is_extrapolated_on_a_straight_line():
    deep = replace(MODEL, num_layers=11)
    assert footprint.extrapolate(lambda m: 5.0 + 3.0 * m.num_layers, deep) == 5 + 3 * 11


def test_work_by_hand():
    # A layer: q, o 8 x 24 each; k, v 8 x 12 each; three of 8 x 16. Head 8 x 40.
    layer = 2 * 8 * 24 + 2 * 8 * 12 + 3 * 8 * 16
    forward = 2 * (2 * layer * 12 + 8 * 40 * 5) + 4 * 24 * 2 * 12**2 / 2
    # Gradient three passes, reference one.
    assert footprint.count_flops(SETTING) == {"rollout": 12 * forward, "update": 12 * 4 * forward}


def test_seconds_by_hand(measured, params):
    rates = cost.Rates(flops=1e6, bandwidth=1e4)
    weights = footprint.sampled_bytes(SETTING)
    assert weights == sum(x.nbytes for x in jax.tree.leaves(params))
    # 12 rows of 4 chunks are 3 episodes; 6 fit at once, so half a batch of 6.
    seconds = cost.step_seconds(SETTING, measured, weights, 4, rates)
    rollout, update = measured.flops["rollout"], measured.flops["update"]
    assert np.isclose(seconds["prefill"], rollout * 7 / 12 / 0.45e6)
    assert np.isclose(seconds["update"], update / 0.45e6)
    read = weights + measured.rollout["cache"] * (7 + 5 / 2) / 12
    assert np.isclose(seconds["decode"], 0.5 * 4 * 5 * read / 0.54e4)
    pod = cost.step_seconds(replace(SETTING, mesh=(2, 2, 1)), measured, weights, 4, rates)
    assert np.isclose(pod["update"], seconds["update"] / 4)
    assert cost.DEVICES.keys() == footprint.DEVICES.keys()


def test_seconds_of_a_call_by_hand():
    layer, rates = 2 * 8 * 24 + 2 * 8 * 12 + 3 * 8 * 16, cost.Rates(flops=1e6, bandwidth=1e4)
    forward = 2 * (2 * layer * 12 + 8 * 40 * 5) + 4 * 24 * 2 * 12**2 / 2
    # float32: the weights for three calls, keys and values of 2 layers, 2 heads of 6.
    read = (2 * layer + 8 * 40) * 4 / 3 + 2 * 2 * 12 * 4 * (7 + 5 / 2)
    seconds = cost.call_seconds(MODEL, 7, 5, rates, at_once=3)
    assert np.isclose(seconds, forward / 0.45e6 + 5 * read / 0.54e4)


def test_the_seconds_of_a_measured_decode_step():
    """docs/benchmarks.md: 64 rows of Qwen3-4B after 1,024 tokens read 18.0 GB in 6.84 ms."""
    rates = cost.DEVICES["H200 141 GB"]
    assert np.isclose(18.0e9 / (rates.bandwidth * cost.BANDWIDTH_SHARE), 6.84e-3, rtol=0.03)


def test_suggestion_by_hand():
    example = footprint.Footprint(
        persistent={"a": 10.0},
        rollout={"b": 20.0},
        update={
            "gradients, two sets": 4.0,
            "stacked layers": 2.0,
            "activations, 1 rows": 3.0,
        },
        flops={},
        row_bytes=3.0,
    )
    setting = replace(SETTING, mesh=(2, 1, 1), step_rows=48)
    # 0.92 x 50 - 10 = 36 for 6 and rows of 3: ten rows, so 8 on each of two.
    assert footprint.suggest_micro_batch(example, setting, 50.0) == 16
    assert footprint.suggest_micro_batch(example, setting, 30.0) == 0  # the rollout does not fit
    assert footprint.suggest_micro_batch(example, replace(setting, step_rows=4), 1000.0) == 4


def test_too_little_memory_names_what_is_too_large(monkeypatch, measured):
    needed = sum(measured.persistent.values()) + measured.update["gradients, two sets"]
    footprint.check_fits(SETTING, needed)
    # The exact copy of the embedding in the optimiser: 40 x 8 float32.
    largest = r"The largest array is \S*embed/embedding \[40, 8\] of the optimiser: 0.0 GB"
    with pytest.raises(ValueError, match=largest):
        footprint.check_fits(SETTING, needed - 1)

    config = qwen3_4b.get_config("model.path=,mesh.fsdp=1")
    monkeypatch.setattr(sharding, "machine_memory", lambda: 80e9)
    # 4.02e9 weights: 2 bytes twice, 12 in the optimiser, 4 in each of two sets of gradients.
    told = "has 80.0 GB, .* keeps 96.5 there .*optimiser 48.3.*lora.rank=32"
    with pytest.raises(ValueError, match=told):
        needs.check_memory(config)
    monkeypatch.setattr(sharding, "machine_memory", lambda: 97e9)
    needs.check_memory(config)
    monkeypatch.setattr(sharding, "machine_memory", lambda: 10e9)
    needs.check_memory(qwen3_4b.get_config("lora,model.path=,mesh.fsdp=1"))


def test_a_full_device_is_told_from_other_errors():
    told = needs.advice(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"))
    assert "config.rl.micro_batch" in told and "python -m experiments.plan" in told
    assert needs.advice(RuntimeError("INTERNAL: something else")) == ""


def test_meshes_of_a_command():
    config = tiny.get_config("mesh.fsdp=-1,mesh.tensor=2")
    assert mesh_sizes(config, 32) == (1, 16, 2)
    with pytest.raises(ValueError, match="--devices=31"):
        mesh_sizes(config, 31)
    assert mesh_sizes(tiny.get_config(), 0) == (1, 1, 1)
    with pytest.raises(ValueError, match="--devices=8"):
        mesh_sizes(tiny.get_config(), 8)


@pytest.mark.parametrize("preset", [qwen3_4b, qwen3_0_6b_single_gpu])
def test_pretrained_configs_pass_the_early_checks_with_a_model_at_hand(preset):
    here = "tests/fixtures/qwen3_tied"
    check(preset.get_config(f"model.path={here}"))
    check(preset.get_config(f"lora,released,model.path={here}"))
    ablation = preset.get_config("beta=0.2,gamma=0.1,seed=3")
    assert (ablation.reward.beta, ablation.reward.gamma, ablation.seed) == (0.2, 0.1, 3)
    with pytest.raises(ValueError, match="unknown config argument 'fast'"):
        preset.get_config("fast")


def test_rows_of_the_config_are_cut_over_the_pod(monkeypatch):
    mesh = jax.sharding.AbstractMesh((1, 32, 1), sharding.AXES)
    monkeypatch.setattr(objects, "make_mesh", lambda *sizes: mesh)
    check(qwen3_4b.get_config("model.path="))
    with pytest.raises(ValueError, match="config.rl.micro_batch: 16 rows are sharded over .* = 32"):
        check(qwen3_4b.get_config("model.path=,rl.micro_batch=16"))
    with pytest.raises(ValueError, match="config.rl.instances x config.rl.rollouts: 8 rows"):
        check(qwen3_4b.get_config("model.path=,rl.instances=1"))


def test_the_paper_on_32_devices():
    """arXiv:2509.25911, section 4: batch 32 x 8 rollouts, no KL, clip 0.2."""
    config = qwen3_4b.get_config()
    rl = config.rl
    assert (rl.instances, rl.rollouts, rl.steps, rl.learning_rate) == (32, 8, 205, 1e-6)
    assert (rl.kl, rl.clip_low, rl.clip_high, rl.aggregation) == ("none", 0.2, 0.2, "sequence")
    assert (config.prompt.tokens, config.prompt.response_tokens) == (6144, 2048)
    setting = build_setting(config, 32)
    assert setting.mesh == (1, 32, 1) and setting.micro_batch % 32 == 0
    mesh = jax.sharding.AbstractMesh(setting.mesh, sharding.AXES)
    params = footprint.abstract_params(setting.model, mesh)
    count = sum(np.prod(x.shape) for x in jax.tree.leaves(params))
    assert count == 4_022_468_096  # Qwen3-4B
    assert footprint.stored(params) < 1.01 * 2 * count / 32
