"""Co-Evolving Policy Distillation."""
