"""What the quantisers are fed: which patches, and which layers stay float."""
