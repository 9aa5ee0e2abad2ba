"""Grading of final answers: where the answer stands, what it says, and whether it equals the ground truth.

| module | what |
|---|---|
| ``response`` | which part of a response is the model's own final text, and the boxed answer in it |
| ``canonical`` | answers as short canonical strings; most comparisons end there |
| ``conditions`` | optional conditions on the form of a response |
| ``processes`` | symbolic comparison by math-verify in processes that are bounded in time and memory |
"""
