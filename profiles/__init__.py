"""Data only: architectures, datasheets, the quality prior, the profile's JSON Schema, measured profiles."""
