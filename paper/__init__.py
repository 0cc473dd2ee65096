"""paper/results.md from the folders of studies, whichever are finished."""
