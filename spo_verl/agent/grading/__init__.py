"""Grading of final answers: where the answer is, what it says, and whether it equals the ground truth.

| module | what |
|---|---|
| ``response`` | which part of a response is the model's own final text, and the boxed answer in it |
| ``truths`` | which ground truths are usable |
| ``tokens`` | an answer as tokens, without layout |
| ``parsing`` | what an answer says: expressions, lists, intervals, equations, words |
| ``units`` | words after numbers |
| ``comparing`` | whether two answers say the same |
| ``exact`` | whether two expressions are equal, exactly and with bounded work |
| ``field`` | whether expressions with variables are equal on all branches |
| ``foreign`` | sums, products, integrals and limits, which math-verify reads |
| ``short_forms`` | answers as short strings that vote; what is settled without algebra |
| ``conditions`` | optional conditions on the form of a response |
| ``processes`` | comparisons in processes that are bounded in time and memory |
| ``worker`` | what such a process runs |
"""
