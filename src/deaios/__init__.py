"""DeAIOS: an open, verifiable operating system for AI."""

__version__ = "0.1.0"
