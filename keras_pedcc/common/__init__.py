"""Small helpers that every other room may use."""
