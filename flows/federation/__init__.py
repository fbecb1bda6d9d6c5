"""Silos that are elsewhere: a run here, the silos' part there, and the exchange between them."""
