"""Kept for tools that still look for it; all metadata lives in pyproject.toml."""

from setuptools import setup

setup()
