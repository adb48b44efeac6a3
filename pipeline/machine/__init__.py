"""Devices elsewhere: the program they run, and the way to them."""
