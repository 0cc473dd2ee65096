"""Co-Evolving Policy Distillation: experts that teach each other while they learn, then merge.

Import from the packages below: `copd.config` and `copd.recipes` (no torch), `copd.functional`,
`copd.policy`, `copd.branch`, `copd.engine`, `copd.run`.
"""
