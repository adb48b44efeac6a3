"""What builders need that start from the torch net."""
