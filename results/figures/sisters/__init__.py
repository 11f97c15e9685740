"""Figures of studies of other papers on forgetting."""
