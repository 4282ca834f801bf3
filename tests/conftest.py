"""Its place puts this folder on the import path: tests share `invented`."""
