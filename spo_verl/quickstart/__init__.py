"""The quickstart: the small model learns its task on a CPU, with SPO through verl's stock command.

| module | what it holds |
|---|---|
| ``run`` | the whole sequence |
| ``runs`` | the folder of a run |
| ``overrides`` | ``key=value`` arguments checked before anything is made |
| ``evaluate`` | exact accuracies, and the tracker held against them |
| ``report``, ``plots``, ``compare`` | what is said and drawn |

Model, task and settings are :mod:`spo_verl.small`'s.
"""
