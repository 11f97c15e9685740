"""Side-by-side measurements, each a runnable script that prints one table."""
