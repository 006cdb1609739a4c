"""What the operating system is asked for: files, memory, processes, signs of life."""
