"""Services of the operating system: files, memory, processes, signs of life."""
