"""How many programs XLA has been asked for: after the first steps of a run there should be none."""

import jax

# Timed by JAX around every program that it has no executable of yet, be it compiled or on disk.
EVENT = "/jax/core/compile/backend_compile_duration"
_seen = 0


def compilations() -> int:
    """Programs compiled, or loaded from the cache on disk, since this module was imported."""
    return _seen


def _listen(event: str, seconds: float, **_) -> None:
    global _seen
    _seen += event == EVENT


jax.monitoring.register_event_duration_secs_listener(_listen)
