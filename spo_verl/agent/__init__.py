"""Tool-integrated reasoning: agent loop, code interpreter, rewards."""
