"""Recipes: the numbers that are run."""
