"""Frozen LM and retrievers composed into runnable jobs."""
