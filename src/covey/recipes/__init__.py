"""Ready tasks. Each recipe names a task, an algorithm, its data and the settings that work."""
