"""Order: which packed sequence a stage reads at each position, and the batches of each rank."""
