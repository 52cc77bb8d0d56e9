"""The commands, one module each: thin borders around verbs, which are imported when a command runs."""
