"""How long a run would take here and how much memory, before it starts."""
