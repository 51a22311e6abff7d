"""Recipes compute explanations from captured attention or from a case; each is found through an entry point.

They import the core only, never adapters or one another's insides.
"""
