"""Evaluation of generations: reading them, metrics of each benchmark, tables and plots, next to the paper's numbers.

| module | what |
|---|---|
| ``generations`` | reads verl's validation dumps and plain files, line by line |
| ``scores`` | avg@k, pass@k and maj@k of each benchmark, intervals, differences between runs, what is incomplete |
| ``benchmarks`` | names and sizes of the five benchmarks, and Table 1 of the paper (``table1.json``) |
| ``exports`` | generations and metrics in the files of lm-evaluation-harness and lighteval |
| ``result_tables``, ``figures`` | the same for readers |

The maths is in `spo_verl.core.evaluation`.
"""
