"""Texts as tokens: where a text comes from, its vocabulary, batches of it, and what a count model makes of it."""
