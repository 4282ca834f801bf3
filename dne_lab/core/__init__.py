"""What everything else stands on: errors, chance, files, configurations, presets. It imports nothing of the package."""
