"""Linear layers, and those with low-rank adapters (`lora`).

Axes: N tokens, R rank.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

LORA = ("lora_a", "lora_b")


class Dense(nn.Dense):
    """A linear layer; where the parameters hold a low-rank update A B of its kernel W (`lora`), one
    with the kernel W + A B, in which A and B have gradients and W has none.

    So nothing as wide as the output is computed twice, and what is trained is to the bit the merged
    model that is sampled from.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if not self.has_variable("params", "lora_a"):
            return super().__call__(x)
        kernel, a, b = (self.get_variable("params", name) for name in ("kernel", *LORA))
        y = _apply(x.astype(self.dtype), lax.stop_gradient(kernel), a, b)
        if self.use_bias:
            y = y + self.get_variable("params", "bias").astype(self.dtype)
        return y


def merge_kernel(kernel: Array, a: Array, b: Array) -> Array:
    """W [in, out] + A [in, R] B [R, out], added in float32, in the dtype of W."""
    return (kernel.astype(jnp.float32) + a @ b).astype(kernel.dtype)


@jax.custom_vjp
def _apply(x: Array, kernel: Array, a: Array, b: Array) -> Array:
    """x [..., in] (W + A B), [..., out] in the dtype of x.

    The merged kernel is made again for the gradient of x: it costs R products a weight, and kept it
    would be a second copy of the model.
    """
    return x @ merge_kernel(kernel, a, b).astype(x.dtype)


def _forward(x: Array, kernel: Array, a: Array, b: Array):
    return _apply(x, kernel, a, b), (x, kernel, a, b)


def _backward(saved: tuple[Array, Array, Array, Array], dy: Array):
    x, kernel, a, b = saved
    dx = dy @ merge_kernel(kernel, a, b).astype(x.dtype).T
    rows, into = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])  # [N, in], [N, out]
    inner, back = rows @ a.astype(x.dtype), into @ b.T.astype(x.dtype)  # [N, R]
    da, db = (rows.T @ back).astype(a.dtype), (inner.T @ into).astype(b.dtype)
    return dx, jnp.zeros_like(kernel), da, db  # W is frozen: nobody asks for its gradient


_apply.defvjp(_forward, _backward)
