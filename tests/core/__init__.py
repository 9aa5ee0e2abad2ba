"""Tests of the maths; ``helpers`` holds the deliberately naive implementations they compare with."""
