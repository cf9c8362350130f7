"""Prompts with parameters, one method a file, and the ways to initialise them."""
