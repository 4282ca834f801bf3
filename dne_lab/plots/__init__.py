"""How it is shown: figures that are tables first."""
