"""One file a thing that is measured."""
