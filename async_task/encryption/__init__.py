"""Encrypted arguments: encryptors, ciphers, keys, and key rotation."""
