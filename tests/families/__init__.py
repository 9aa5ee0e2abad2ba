"""Real runs of more model families and features than the default suite has time for; all are marked slow."""
