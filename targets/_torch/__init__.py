"""Parts of the builders that start from the torch net."""
