"""A real SLURM on this machine, and what Retain does on it."""
