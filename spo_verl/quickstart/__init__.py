"""The quickstart: a small model, a task it can learn on a CPU, and SPO through verl's stock command.

| module | what it holds |
|---|---|
| ``overrides`` | ``key=value`` arguments checked before anything is made |
| ``run`` | the whole sequence, and its settings |
"""
