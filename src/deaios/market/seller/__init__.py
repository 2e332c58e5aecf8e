"""The provider's side: journal and service. What it sells is injected; it never knows the engine."""
