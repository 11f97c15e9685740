"""What is read: corpora, tokenising and packing, exact mixtures, the data module of a stage."""
