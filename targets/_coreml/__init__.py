"""What only Core ML needs."""
