"""INT8 under a budget of dB: search and QAT, and what judges their candidates."""
