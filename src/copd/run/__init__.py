"""Runs: the training loop, its files, evaluation and merging."""
