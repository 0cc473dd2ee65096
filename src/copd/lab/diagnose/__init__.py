"""The diagnosis: whether a student can learn from a teacher by on-policy distillation."""

from copd.lab.diagnose.command import diagnose

__all__ = ["diagnose"]
