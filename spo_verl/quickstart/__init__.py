"""The quickstart: a small model, a task it can learn on a CPU, and SPO through verl's stock command.

| module | what it holds |
|---|---|
| ``task`` | the arithmetic ladder: prompts from easy to very hard with verifiable answers |
| ``model`` | a small Qwen3-architecture model with its tokenizer and chat template |
| ``warmstart`` | supervised training up to a chosen accuracy, and the exact sampled accuracy of a model |
| ``reward`` | the 0/1 reward that verl loads |
| ``overrides`` | ``key=value`` arguments checked before anything is made |
| ``progress`` | what is shown while a run goes on |
| ``run`` | the whole sequence, and its settings |
"""
