from spo_verl.small.model import *  # noqa: F403  # the former place of these names
