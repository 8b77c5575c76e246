"""An AGX Orin as a folder of files and programs, for tests and for readers without a board."""
