"""What ``spo-verl doctor`` looks at.

| module | what it holds |
|---|---|
| ``findings`` | one line of the report, and groups of lines |
| ``software`` | versions of what is installed, against what spo_verl and verl ask for |
| ``machine`` | disk, shared memory, memory |
| ``probe`` | what can only be seen by importing verl, vLLM or Ray; runs in processes of its own |
| ``processes`` | starts the probes under a time limit and reads their answers |
| ``contained``, ``recipe_needs`` | the embedded interpreter; recipes, their reward, and what each engine needs |
| ``verl_side``, ``devices`` | judge those answers: plugin, seams and workarounds; Ray, torch, vLLM |
"""
