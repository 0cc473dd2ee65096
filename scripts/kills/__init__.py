"""Runs whose processes and machines are killed, compared with a run that is left alone."""
