"""The trunks, one file each; a module in here registers itself (`register_trunk`)."""
