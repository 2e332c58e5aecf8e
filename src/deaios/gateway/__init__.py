"""The doors outsiders use: the OpenAI API."""
