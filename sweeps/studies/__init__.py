"""The study files that ship with Retain."""
