"""Speed and memory of copd, measured side by side with TRL and with plain transformers."""
