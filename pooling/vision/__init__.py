"""Models that take images: how images are read at the door, and how a step runs that has some."""
