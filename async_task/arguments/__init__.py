"""The arguments of a call: what can be stored, how it is encoded, and how it is decoded."""
