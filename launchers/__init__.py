"""Where and how runs are made: here, as SLURM jobs or on Ray; with planning, checks, searches and the command line."""
