"""The frozen LM applied to its own output, as text and as vectors (arXiv 2204.10019, section 4)."""
