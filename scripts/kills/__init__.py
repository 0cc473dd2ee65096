"""Kills branches and the machines they live on under a run, and compares how it ends."""
