"""Co-Evolving Policy Distillation (arXiv 2604.27083): experts distil each other as they learn.

Import from the packages, such as `copd.config`, `copd.recipes` (both without torch),
`copd.functional`, `copd.policy`, `copd.branch`, `copd.engine` and `copd.run`.
"""
