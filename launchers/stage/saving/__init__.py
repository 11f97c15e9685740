"""What attempts of one process save of their work on the way, when they save it, and how the next attempt finds it."""
