"""Recipes: finding and composing one, and rehearsing it on a machine without its accelerators."""
