"""From chat messages to what a model reads: the chat template, token ids, pixel rows, and the
features that a vision tower makes of them."""
