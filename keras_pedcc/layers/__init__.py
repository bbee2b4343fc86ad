"""Heads: features in, features and scores out."""
