"""copd side by side with TRL on a CPU: `python -m benchmarks.cpu`, not part of the package."""
