"""Reports of results: one HTML page that opens anywhere, Markdown, JSON."""
