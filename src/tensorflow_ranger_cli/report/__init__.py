"""The page that shows runs side by side."""
