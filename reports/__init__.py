"""A profile as terminal text, PNG plots and one self-contained HTML page."""
