"""Preferences: corpora of pairs, a prompt with a chosen and a rejected response."""
