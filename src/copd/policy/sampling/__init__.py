"""Sampling completions from a policy: the protocol of samplers, the policy's own decode loop with
CUDA graphs, and vLLM."""
