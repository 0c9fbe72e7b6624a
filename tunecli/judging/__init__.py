"""Judges: models that say which of two answers is better, or how good one is; and how far they can be trusted."""
