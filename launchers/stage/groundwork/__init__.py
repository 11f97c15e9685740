"""The kinds of runs that stages need besides the stage before them. Their attempts save what they have and continue exactly."""
