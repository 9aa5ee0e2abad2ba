"""Before and around a run of verl: its configuration composed as hydra would, and its process started and watched.

| module | what it holds |
|---|---|
| ``composition`` | the configuration of ``python -m verl.trainer.main_ppo``, and where each value comes from |
| ``hydra_side`` | what hydra makes of a command line, with every override that it refuses |
| ``named_files`` | files that a configuration names and that are not there |
| ``launch`` | that command run in a Ray cluster of its own, its log and metrics read |
| ``deadline`` | a trainer that ends by itself, after a step, before the time of its launch is over |
| ``limits`` | what a call may use, and the errors that end it |
| ``runs`` | folders of runs, each with the launches that it took |
| ``progress`` | what is shown while a launch is at work |
| ``upgrade`` | names of verl that the package builds on, looked up in another verl |
| ``supervise`` | a command under limits of time, silence and memory, of which nothing remains |
"""
