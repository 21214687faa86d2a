"""Mem-alpha in JAX: train a language model to write its own memory."""
