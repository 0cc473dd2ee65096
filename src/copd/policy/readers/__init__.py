"""Passes of groups of completions through a model that read each prompt once, with their gradient:
which tokens are run, how they attend, and the kernels that compute it on CPUs and GPUs."""
