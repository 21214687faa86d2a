"""Mem-alpha in JAX: train a language model to write its own memory."""

import os

# Before `transformers` is imported: it says that there is no PyTorch, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
