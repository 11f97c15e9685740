"""Verdicts on the claims of other papers on forgetting."""
