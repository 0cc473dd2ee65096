"""Can this student learn from this teacher by on-policy distillation? Measures, trains none."""

from copd.lab.diagnose.command import diagnose

__all__ = ["diagnose"]
