"""A question to ranked passages. Importing this package needs neither torch nor faiss."""
