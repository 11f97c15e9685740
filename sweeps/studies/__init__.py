"""The study files that come with Retain."""
