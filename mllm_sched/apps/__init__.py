"""Small applications for a notebook or a page; plain tables where there are no widgets."""
