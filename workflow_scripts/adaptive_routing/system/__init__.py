"""What touches the operating system: errors for users, files, processes. Imports nothing of the package."""
