"""Small applications for a notebook or a page."""
