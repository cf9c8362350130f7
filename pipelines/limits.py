"""Limits on what is taken in."""

MAX_QUESTION_CHARACTERS = 100_000
