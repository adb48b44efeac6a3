"""Words that every room shares: errors, records, images, metrics and plug-in discovery."""
