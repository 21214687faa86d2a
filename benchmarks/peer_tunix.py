"""google-tunix: its sampler, its GRPO loss and trainer, and whole iterations of its learner."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.generate import sampler
from tunix.models.qwen3 import model as qwen3
from tunix.rl import algo_core, rl_cluster
from tunix.rl import common as rl_common
from tunix.rl import trainer as rl_trainer
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix.sft import peft_trainer

from benchmarks.shapes import (
    BETA,
    CLIP,
    FIRST_ID,
    LEARNING_RATE,
    MAX_NORM,
    Shape,
    check_count,
)

NEVER = 10**9  # steps
PLENTY = 10**4  # iterations; the benchmark ends the process earlier


class Ids:
    """A tokenizer whose texts are ids, so that no work on text is timed."""

    def encode(self, text: str, **_) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids, **_) -> str:
        return " ".join(map(str, ids))

    def pad_id(self) -> int:
        return 0

    def bos_id(self) -> int:
        return 0

    def eos_id(self) -> int:
        return 1


def build(shape: Shape) -> qwen3.Qwen3:
    config = qwen3.ModelConfig(
        num_layers=shape.layers,
        vocab_size=shape.vocab,
        embed_dim=shape.hidden,
        hidden_dim=shape.mlp,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rope_theta=1_000_000,
        norm_eps=1e-6,
        use_tied_embedding=True,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        remat_config=qwen3.RematConfig.NONE,
    )
    model = qwen3.Qwen3(config, rngs=nnx.Rngs(0))
    check_count(shape, sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))))
    return model


def texts(shape: Shape, rng: np.random.Generator, count: int) -> list[str]:
    rows = rng.integers(FIRST_ID, shape.vocab, (count, shape.prompt))
    return [" ".join(map(str, row)) for row in rows]


def generate(settings: dict, rounds) -> None:
    """Tokens and log-probs, as a rollout needs them."""
    shape = Shape(**settings)
    cache = sampler.CacheConfig(
        cache_size=shape.prompt + shape.new,
        num_layers=shape.layers,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
    )
    draw = sampler.Sampler(build(shape), Ids(), cache)
    rng = np.random.default_rng(0)
    for number, _ in enumerate(rounds):
        out = draw(
            texts(shape, rng, shape.batch),
            max_generation_steps=shape.new,
            max_prompt_length=shape.prompt,
            temperature=1.0,
            top_p=1.0,  # without it the sampler is greedy
            top_k=None,
            seed=number,
            eos_tokens=[-1],
            return_logprobs=True,
        )
        if any(len(row) != shape.new for row in out.tokens):
            raise ValueError(f"expected {shape.new} new tokens in every row")


def make_optimizer() -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(MAX_NORM), optax.adamw(LEARNING_RATE))


def step(settings: dict, rounds) -> None:
    shape = Shape(**settings)
    algorithm = GRPOConfig(
        num_generations=shape.group, beta=BETA, epsilon=CLIP, loss_agg_mode="token-mean"
    )
    algorithm.temperature = 1.0
    trainer = rl_trainer.Trainer(
        model=build(shape),
        optimizer=make_optimizer(),
        training_config=peft_trainer.TrainingConfig(eval_every_n_steps=NEVER, max_steps=None),
        custom_checkpoint_metadata_fn=dict,
    )

    def loss(model, train_example, algo_config):
        return algo_core.grpo_loss_fn(
            model, train_example, algo_config=algo_config, pad_id=0, eos_id=1
        )

    trainer.with_loss_fn(loss, has_aux=True)
    trainer.with_gen_model_input_fn(
        lambda example: {"train_example": example, "algo_config": algorithm}
    )
    train, _ = trainer.jit_train_and_eval_step()
    rng = np.random.default_rng(0)
    tokens = rng.integers(FIRST_ID, shape.vocab, (shape.batch, shape.prompt + shape.new))
    given = jnp.full((shape.batch, shape.new), -float(np.log(shape.vocab)))
    example = rl_common.TrainExample(
        prompt_ids=jnp.asarray(tokens[:, : shape.prompt]),
        prompt_mask=jnp.ones((shape.batch, shape.prompt), bool),
        completion_ids=jnp.asarray(tokens[:, shape.prompt :]),
        completion_mask=jnp.ones((shape.batch, shape.new), bool),
        advantages=jnp.asarray(rng.normal(size=shape.batch), jnp.float32),
        old_per_token_logps=given,
        ref_per_token_logps=given,
    )
    for _ in rounds:
        out = train(example)
        finish_all()
        rounds.note(loss=float(jax.tree.leaves(out)[0]))


def iteration(settings: dict, rounds) -> None:
    """One round is a whole iteration of the learner: from one call of the reward to the next."""
    shape = Shape(**settings)
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    different = shape.batch // shape.group

    def reward(prompts, completions, **_):
        finish_all()
        rounds.note(tokens=sum(len(text.split()) for text in completions))
        rounds.turn()
        return [len(set(text.split())) / shape.new for text in completions]

    roles = rl_cluster.Role
    cluster = rl_cluster.RLCluster(
        actor=build(shape),
        reference=build(shape),
        tokenizer=Ids(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys((roles.ACTOR, roles.REFERENCE, roles.ROLLOUT), mesh),
            rollout_engine="vanilla",
            offload_to_cpu=False,
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=make_optimizer(),
                max_steps=PLENTY,
                eval_every_n_steps=NEVER,
                mini_batch_size=different,
                train_micro_batch_size=different,
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=shape.new,
                max_prompt_length=shape.prompt,
                kv_cache_size=shape.prompt + shape.new + 1,
                temperature=1.0,
                top_p=1.0,
                top_k=None,
                eos_tokens=[-1],
            ),
        ),
    )
    algorithm = GRPOConfig(num_generations=shape.group, num_iterations=1, beta=BETA, epsilon=CLIP)
    learner = GRPOLearner(rl_cluster=cluster, algo_config=algorithm, reward_fns=reward)
    prompts = np.array(texts(shape, np.random.default_rng(0), different))
    with mesh:
        learner.train([{"prompts": prompts}] * PLENTY)


def finish_all() -> None:
    """Waits for all dispatched work, so that it is counted in this round."""
    jax.block_until_ready(jax.live_arrays())
