"""The quality of proposals: recall, the data it is measured on, and curves of it."""
