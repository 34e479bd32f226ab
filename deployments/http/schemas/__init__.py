"""The bodies that clients may send, and those they get, one file for each API family."""
