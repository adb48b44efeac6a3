"""Parts that only LiteRT needs."""
