"""The writer outside training: `MemoryAgent`, its store, an HTTP server and a terminal."""

from memalpha.agent.memory_agent import MemoryAgent, Reply, dialogue

__all__ = ["MemoryAgent", "Reply", "dialogue"]
