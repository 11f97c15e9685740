"""Tasks of the lm-evaluation-harness: what defines one, and its copy in the store."""
