"""What builds the site beside mkdocs: generated pages, figures, equations, and a check of the links."""
