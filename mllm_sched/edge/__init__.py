"""The running system: edge agents, their front, their journal, and what watches them."""
