"""Generated from ``agent.proto`` by ``make proto``."""
