"""The model and batch sizes of all contenders (about a second per round on 2 CPU cores)."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Shape:
    """A Qwen3 model with a tied head, float32, and a batch: prompt and new in tokens, group in
    rollouts of one prompt."""

    vocab: int = 8192
    hidden: int = 256
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 32
    mlp: int = 768
    batch: int = 32
    prompt: int = 256
    new: int = 64
    group: int = 8

    @property
    def parameters(self) -> int:
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (query + 2 * key) + query * self.hidden + 2 * self.head_dim
        layer = attention + 3 * self.hidden * self.mlp + 2 * self.hidden
        return self.vocab * self.hidden + self.layers * layer + self.hidden


QUICK = Shape(
    vocab=512, hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp=128,
    batch=8, prompt=32, new=8, group=4,
)  # fmt: skip

BETA, CLIP, LEARNING_RATE, MAX_NORM = 1e-3, 0.2, 1e-6, 1.0  # of the GRPO step
FIRST_ID = 10  # ids below are special to some tokenizers


def settings(quick: bool) -> dict[str, int]:
    return asdict(QUICK if quick else Shape())


def check_count(shape: Shape, count: int) -> None:
    """Raises ValueError where a contender's model is not that of the shape."""
    if count != shape.parameters:
        raise ValueError(f"the model has {count} parameters, the shape {shape.parameters}")
