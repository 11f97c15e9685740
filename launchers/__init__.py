"""Where and how it runs: one stage in one process group, the local launcher, and the command line."""
