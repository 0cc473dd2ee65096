"""A study of methods and seeds: which runs it needs, running them side by side, and its tables."""
