"""Pictures of any size with a bundle's model: tiles within a bound of memory, PNG out."""
