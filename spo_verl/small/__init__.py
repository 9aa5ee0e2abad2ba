"""A small model and a task that it can learn on a CPU: what the quickstart, rehearsals, benchmarks and tests share.

| module | what it holds |
|---|---|
| ``model`` | a small Qwen3-architecture model with its tokenizer and chat template |
| ``task`` | the arithmetic ladder: prompts from easy to very hard with verifiable answers |
| ``reward`` | its 0/1 reward, as verl loads it |
| ``warmstart`` | supervised training up to a chosen accuracy, and the exact sampled accuracy of a model |
| ``prepare`` | a warm-started model, kept on disk for all runs that need the same one |
| ``launches`` | what can be chosen in a run, and the hydra overrides that follow |
"""
