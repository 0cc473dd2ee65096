"""Run the methods and seeds of a study as jobs, and collect their results."""
