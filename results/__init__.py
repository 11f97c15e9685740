"""What comes out: the store of runs, and what is made of it."""
