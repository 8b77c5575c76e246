"""How a live run is measured."""
