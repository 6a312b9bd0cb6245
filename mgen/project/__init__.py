"""Projects: own images → classifier, tokenizer, check, token cache, generator and report, each by settings files that people edit."""
