"""What happens around learning: the loop, its files, evaluation and merging."""
