"""What studies of other papers on forgetting measure, read from their trials."""
