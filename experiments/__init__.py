import memalpha  # noqa: F401 (quiets transformers, so it comes first)
