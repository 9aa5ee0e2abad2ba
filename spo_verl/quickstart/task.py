from spo_verl.small.task import *  # noqa: F403  # the former place of these names
