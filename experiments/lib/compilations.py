"""Counts XLA compilations; after the first steps of a run there should be no more of them."""

import jax

# JAX fires this event on every compilation and every load from the compilation cache on disk.
EVENT = "/jax/core/compile/backend_compile_duration"
_seen = 0


def compilations() -> int:
    """Programs compiled or loaded from the cache on disk since this module was imported."""
    return _seen


def _listen(event: str, seconds: float, **_) -> None:
    global _seen
    _seen += event == EVENT


jax.monitoring.register_event_duration_secs_listener(_listen)
