"""Simulated studies with a known truth: how often verdicts err."""
