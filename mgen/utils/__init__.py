"""Helpers without a domain: files, seeds, configuration, errors."""
