"""Jobs on a machine elsewhere: their files, the program that does them, the way to it."""
