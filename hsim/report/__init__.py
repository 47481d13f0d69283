"""Results for people: tables of a terminal, figures, and a page to pass on."""
