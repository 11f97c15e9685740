"""The kind of run that measures a stage on a task of the lm-evaluation-harness."""
