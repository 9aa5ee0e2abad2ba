"""Runs as they are on disk: what their checkpoints and their record say about prompts, rollouts and steps.

| file | what |
|---|---|
| ``places`` | a run, a checkpoint or a record found from a path |
| ``states`` | what is known of every prompt at one moment |
| ``summaries`` | numbers over all prompts, and lists of prompts by a measure |
| ``steps`` | numbers per step, and values against outcomes |
| ``texts`` | what prompts say |
| ``prompts`` | one prompt found, and its whole history |
| ``responses`` | responses in verl's dumps |
| ``comparing`` | two runs or checkpoints |
| ``exporting`` | a record as one file |

Nothing here starts or joins a cluster.
"""
