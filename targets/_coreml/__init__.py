"""Parts that only Core ML needs."""
