"""Measurement cards: what was measured on which machine, and the figures; subjects run in processes of their own."""
