"""The whole experiment on a laptop: a 0.8M-parameter policy learns to write its memory.

    python run_experiment.py --config=configs/tiny.py --workdir=runs/tiny

Builds its own data and tokenizer; no download, no accelerator. About 14 minutes on 2 idle CPU
cores.
Arguments, after a colon and separated by commas:

    smoke     every stage in a minute and a half, too short to learn anything
    flat      the memory is only the core: everything has to fit one paragraph
    ppo       PPO with a critic in place of GRPO
    field=value   any field of the config, e.g. configs/tiny.py:reward.gamma=0.0,seed=1
"""

from ml_collections import config_dict

from configs.common import finish, language_model, ppo, smoke


def get_config(arg: str = "") -> config_dict.ConfigDict:
    config = config_dict.create(
        seed=0,
        title="tiny: synthetic stream, policy from scratch",
        data=dict(
            sources=(
                "synthetic_facts",
                "synthetic_events",
                "synthetic_labels",
                "synthetic_story",
                "synthetic_updates",
            ),
            dir="",  # folder of the published files, for real sources
            built="",  # or the output folder of `python -m memalpha.data build`
            chunks=2,  # of a training episode, at most
            lengths=(),  # chunks of training episodes in turn; empty: `chunks` always
            facts_per_chunk=3,
            filler_share=0.5,
            empty_share=0.25,  # of the chunks of synthetic chats: they hold nothing worth keeping
            chunk_tokens=100,  # real sources only
            max_questions=100,
            session_questions=0,  # of LongMemEval, where each brings its sessions; 0: max_questions
            instances=0,  # real sources: built for training; synthetic ones are never repeated
        ),
        # Empty path: the tokenizer of model.path, or one trained on the training split.
        tokenizer=dict(path="", vocab_size=2048),
        model=dict(
            # Folder or hub id (optionally with @revision) of a pretrained model, whose shape
            # replaces the sizes below. Empty: a model from scratch.
            path="",
            hidden_size=128,
            num_layers=3,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            mlp_size=384,
            rope_theta=10_000.0,
            tie_embeddings=True,
            dtype="float32",
            param_dtype="float32",  # bfloat16: half; the optimiser then has a float32 copy
            remat="none",
            scan_layers=False,
            attention="auto",
        ),
        # data x fsdp x tensor is the number of devices; one of them can be -1: the remaining ones.
        # 1, 1, 1: one device. gather: sample from a copy that is not sharded over fsdp.
        mesh=dict(data=1, fsdp=1, tensor=1, gather=True),
        # rank 0: the whole model is trained; else adapters for kernels whose path matches layers.
        # path: adapters to begin with, a folder or the name of a shipped writer; empty: new ones.
        lora=dict(rank=0, alpha=32.0, layers="_proj", path=""),
        prompt=dict(template="compact", dialect="qwen3", recent=2, tokens=160, response_tokens=72),
        memory=dict(
            core=True,
            semantic=True,
            episodic=True,
            core_tokens=64,
            entry_tokens=48,
            max_calls=16,
            first_ids=(1, 9999),
        ),
        reward=dict(
            beta=0.05,
            gamma=0.2,  # twice the paper's, because r4 is credited per call (call_credit)
            retriever="scann",
            dimensions=512,
            top_k=20,
            normalise_each=False,
            silence=False,  # True: in a chunk without notes silence earns r2 and r4, a call neither
            evidence_share=0.0,  # part of r1 that goes to the steps that wrote what was retrieved
            chunk_weight=0.0,  # of questions about a chunk, asked right after its step
            likelihood=0.0,  # weight of how much likelier the memory makes the answers; reader flax
            transition_weight=0.0,  # of what a step keeps, covers and does not make up
        ),
        reader=language_model(),
        judge=language_model(max_new_tokens=512),
        warm_start=dict(
            teacher="poor",  # who is imitated; careful: stores what somebody may ask about
            steps=650,
            copy_steps=180,  # of these: copying random tokens
            quote_steps=110,  # and then: calls that store pieces of a chunk's lines
            first_weight=1.0,  # of the first token of a response, which decides to call or not
            copy_rows=96,
            rows=32,
            micro_batch=8,  # small ones have the least padding; 0: all rows at once
            optimizer="muon",
            learning_rate=4e-3,
            warmup_steps=20,
            skip=0.5,
            misfile=1 / 3,
            break_call=0.04,
            keep_filler=0.05,
        ),
        rl=dict(
            algorithm="grpo",
            steps=145,
            lengths=(),  # chunks of episodes in turn; empty: as data.lengths says
            curriculum=False,  # True: not in turn, but one length after the other
            instances=5,
            rollouts=8,
            rerolls=0,  # steps of a batch that are taken again, `rollouts` times each
            rollout_rows=0,  # episodes sampled at the same time; 0: all
            optimizer="muon",  # stays closer to the warm start than adamw, and learns faster
            learning_rate=6e-4,
            warmup_steps=10,
            b2=0.99,  # of AdamW (muon: for the embedding); the first gradients are much larger
            schedule="cosine",  # at a constant rate r1 stops rising after some 60 steps
            weight_decay=0.0,
            max_grad_norm=1.0,
            groups="chunk",
            call_credit=True,  # r4 per call; False: one mean per response
            divide_by_std=False,  # of advantages; True: r3 alone would decide where r1 is equal
            aggregation="dr_grpo",
            clip_low=0.2,
            clip_high=0.2,
            kl="k3",  # to the warm start; without it the ability to quote degrades
            kl_coef=0.01,
            entropy_coef=0.0,
            is_cap=0.0,  # 0: no importance weight
            overlap=False,  # True: sample the next batch while a server reads and judges this one
            temperature=0.7,
            top_p=1.0,
            draft_tokens=0,  # copied from the prompt and checked in one pass: the same samples
            micro_batch=8,
            head_chunk=0,  # positions whose logits are in memory at the same time; 0: all
            # PPO only
            epochs=1,
            minibatches=1,
            gae_gamma=1.0,
            gae_lambda=1.0,
            value_coef=0.5,
            value_clip=0.2,  # 0: none
        ),
        eval=dict(
            every=50,
            instances=4,  # of each source, validation
            test_instances=20,  # of each source, in the final table
            temperature=0.7,  # as in training; the final table has greedy rows as well
        ),
        checkpoint_every=25,
        max_failed_share=0.1,  # of questions without an answer, above which the run stops
    )
    return finish(config, arg, {"smoke": smoke, "flat": flat, "ppo": ppo})


def flat(config: config_dict.ConfigDict) -> None:
    """Preset: one paragraph of at most 512 tokens is all the memory there is."""
    config.memory.semantic = config.memory.episodic = False
    config.memory.core_tokens = 512
    # The core is rewritten whole, so a response must hold all of it.
    config.prompt.tokens, config.prompt.response_tokens = 288, 160
