"""One module a verb of the `lm` command: its options, a call into the library, and what it prints."""
