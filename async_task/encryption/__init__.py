"""Encryption of arguments: encryptors, ciphers, keys, key rotation, and the conformance test."""
