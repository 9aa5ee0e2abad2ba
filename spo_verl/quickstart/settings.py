from spo_verl.small.launches import *  # noqa: F403  # the former place of these names
