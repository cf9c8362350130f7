"""The frozen LM and everything that is trained around it."""
