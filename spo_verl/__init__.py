"""Single-stream Policy Optimization (SPO, arXiv 2509.13232) for verl.

Installing the package is enough: verl loads :mod:`spo_verl.plugin` through its ``verl.plugins`` entry point, and
``algorithm.adv_estimator=spo`` switches it on. Importing this module is cheap; the parts are imported on demand.
"""

__version__ = "0.1.0"

SUPPORTED_VERL = ("0.9.1",)
"""Released verl versions whose seams were checked by the test suite."""
